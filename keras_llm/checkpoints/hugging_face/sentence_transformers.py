"""Read and write the files that sentence-transformers adds to a Hugging Face folder."""

import json
import pathlib

from keras_llm import models
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.errors import InputError
from keras_llm.json_files import read_json, read_json_value
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON

MODULES_FILE = "modules.json"
_TRANSFORMER_FILE = "sentence_bert_config.json"
_PROMPTS_FILE = "config_sentence_transformers.json"
# Poolings by their flags, and by their names since version 5.4.
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_NAMES = {"mean": "mean", "cls": "first", "lasttoken": "last"}
_PACKAGE = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Normalize")


def embedder_options(folder: pathlib.Path) -> JSON | None:
    """Return the options of `models.sentence_embedder` that the modules of a folder describe.

    Returns:
        A dict; None if the folder has no modules.json, or only a Transformer module, as the
        folders of cross-encoders.

    Raises:
        InputError: if the modules are not a Transformer, a Pooling and optionally a Normalize.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return None
    rows = read_json_value(path)
    try:
        types = [str(row["type"]) for row in rows]
        paths = [str(row.get("path", "")) for row in rows]
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a list of modules: {error!r}.") from None
    # The package that defines a module depends on the version.
    kinds = [name.rpartition(".")[2] if name.startswith(_PACKAGE) else name for name in types]
    if kinds == ["Transformer"]:
        return None
    if kinds not in (list(_KINDS), list(_KINDS[:2])):
        raise InputError(
            f"{path}: the modules must be {', '.join(_KINDS[:2])} and optionally {_KINDS[2]} of "
            f"sentence_transformers, got {', '.join(types)}."
        )
    if pathlib.PurePath(paths[1]).name != paths[1]:
        raise InputError(f"{path}: `path` must be a folder in the same folder, got {paths[1]!r}.")
    pooling = pooling_of(folder / paths[1] / "config.json")
    return {"pooling": pooling, "normalize": kinds == list(_KINDS)}


def pooling_of(path: pathlib.Path) -> str:
    """Read the pooling from the config.json of a Pooling module.

    Raises:
        InputError: if the file is missing or names another pooling or several.
    """
    fields = Fields(read_json(path), path)
    if "pooling_mode" in fields.row:
        names = fields.row["pooling_mode"]
        names = names if isinstance(names, list) else [names]
        if len(names) != 1 or not isinstance(names[0], str) or names[0] not in _NAMES:
            raise fields.error("pooling_mode", f"be one of {', '.join(_NAMES)}")
        return _NAMES[names[0]]
    modes = [name for name, on in fields.row.items() if name.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in _FLAGS:
        raise InputError(
            f"{path}: exactly one of {', '.join(_FLAGS)} must be true, got "
            f"{', '.join(modes) or 'none'}."
        )
    return _FLAGS[modes[0]]


def text_options(folder: pathlib.Path, tokenizer: Tokenizer) -> JSON:
    """Return the metadata of a `TextEmbedding` that the files about texts describe.

    Returns:
        A dict with `max_length` if the folder limits it.

    Raises:
        InputError: if texts are lowercased, or begin with a prompt by default.
    """
    metadata: JSON = {}
    path = folder / _TRANSFORMER_FILE
    if path.is_file():
        fields = Fields(read_json(path), path)
        fields.refuse_unless(transformer_task="feature-extraction")
        text = fields.part("modality_config").part("text")
        text.refuse_unless(method_output_name="last_hidden_state")
        if not getattr(tokenizer, "lowercase", False):
            fields.refuse_unless(do_lower_case=False)
        longest = fields.positive("max_seq_length", None)
        if longest is not None:
            metadata["max_length"] = longest
    path = folder / _PROMPTS_FILE
    if path.is_file():
        fields = Fields(read_json(path), path)
        name = fields.get("default_prompt_name", str, None)
        if name is not None and fields.part("prompts").row.get(name):
            raise fields.error("default_prompt_name", "be null; write the prompt into the texts")
    return metadata


def write(model: models.HeadModel, folder: pathlib.Path, max_length: int | None = None) -> None:
    """Write the files of an embedding model.

    Args:
        model: a model from `models.sentence_embedder`.
        folder: path.
        max_length: int, the limit of a text's tokens, or None.

    Raises:
        InputError: if the model has a projection.
    """
    options = model.options
    if options["projection_dim"]:
        raise InputError(
            "sentence-transformers' files do not support `projection_dim`; write the model without "
            "its projection."
        )
    default = "mean" if isinstance(model.config, models.EncoderConfig) else "last"
    pooling = options["pooling"] or default
    modes = {name: mode == pooling for name, mode in _FLAGS.items()}
    row = {"word_embedding_dimension": model.config.hidden_dim, **modes}
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", row)
    steps = ["Transformer", "Pooling"] + ["Normalize"] * options["normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"{_PACKAGE}models.{step}"}
        for i, step in enumerate(steps)
    ]
    if options["normalize"]:
        (folder / paths[2]).mkdir()
    _write_json(folder / MODULES_FILE, modules)
    if max_length is not None:
        _write_json(
            folder / _TRANSFORMER_FILE, {"max_seq_length": max_length, "do_lower_case": False}
        )


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
