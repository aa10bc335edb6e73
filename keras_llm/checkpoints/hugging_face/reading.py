"""Load tasks from Hugging Face folders and write them back."""

import json
import pathlib
from typing import Any

import keras

from keras_llm import models, tasks, tokenizers
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.checkpoints.hugging_face.model import labels_of, read_model, write_model
from keras_llm.errors import InputError
from keras_llm.files import atomic_folder
from keras_llm.json_files import read_json, read_json_value
from keras_llm.training.adapters.lora import has_adapters, merge_lora
from keras_llm.types import JSON, PathLike

_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_HEADS = {
    "masked_lm": tasks.MaskedLanguageModel,
    "span_qa": tasks.QuestionAnswering,
    "text_classifier": tasks.TextClassification,
    "token_classifier": tasks.TokenClassification,
}
_MODULE = "sentence_transformers.models."


def from_hugging_face(folder: PathLike, dtype: str | None = None) -> tasks.Task:
    """Load the task of a Hugging Face folder.

    Args:
        folder: str or path with `config.json`, safetensors and a tokenizer. Supported families
            are GPT-2, Llama (and SmolLM2), Mistral, Mixtral, Qwen3, Gemma 2, Gemma 3 (text only),
            BERT (and MiniLM), RoBERTa, DistilBERT and T5.
        dtype: Keras dtype policy of the model. Defaults to the global policy.

    Returns:
        A `TextGeneration` for a decoder, with any chat template of the folder as
        `metadata["chat_template"]` and additional end tokens of `generation_config.json` as
        `metadata["end_token_ids"]`; a `Translation` for T5. For an encoder, the task that
        `config.json` names: a `TextClassification`, `TokenClassification`, `QuestionAnswering` or
        `MaskedLanguageModel`. If it names another class, or the folder has files of
        sentence-transformers, a `TextEmbedding` with the pooling of those files or mean pooling.

    Raises:
        InputError: if a field or tensor is missing, wrong or not supported; the message names it
            and the file. All names and shapes are checked before a weight is read.
    """
    folder = pathlib.Path(folder)
    config = read_json(folder / "config.json")
    tokenizer = tokenizers.from_hugging_face(folder)
    metadata: JSON = {"source": f"Hugging Face, {config.get('model_type')}"}
    pooling = _pooling(folder)
    is_embedder = (folder / "modules.json").is_file()
    model = read_model(folder, dtype, heads=() if is_embedder else _HEADS)
    if isinstance(model, models.HeadModel):
        if "num_classes" in model.options:
            metadata["labels"] = labels_of(folder, model.options["num_classes"])
        if model.head == "span_qa" and config["model_type"] == "roberta":
            metadata["num_separators"] = 2
        return _HEADS[model.head](model, tokenizer, metadata=metadata)
    if isinstance(model, models.Encoder):
        return tasks.TextEmbedding(models.sentence_embedder(model, **pooling), tokenizer, metadata)
    if isinstance(model, models.Seq2Seq):
        return tasks.Translation(model, tokenizer, metadata)
    template = tokenizers.chat_template_from_hugging_face(folder)
    if template is not None:
        metadata["chat_template"] = template.source
    ends = _end_token_ids(folder, config, model.config.vocabulary_size)
    if set(ends) - {tokenizer.eos_id}:
        metadata["end_token_ids"] = ends
    return tasks.TextGeneration(model, tokenizer, metadata)


def to_hugging_face(
    task_or_model: tasks.Task | models.ConfiguredModel, folder: PathLike, overwrite: bool = False
) -> None:
    """Write a folder that `AutoModel...from_pretrained` of transformers loads.

    Args:
        task_or_model: a task, whose tokenizer and chat template are written too, or a model.
            Adapters are merged.
        folder: str or path. It is written atomically.
        overwrite: bool. Whether to replace an existing folder.

    Raises:
        InputError: if no family computes the same as the model, with the unsupported fields; or if
            `folder` exists and `overwrite` is False.
    """
    task: Any = None if isinstance(task_or_model, keras.Model) else task_or_model
    model = task_or_model if task is None else getattr(task, "model", None)
    if not isinstance(model, models.ConfiguredModel):
        raise InputError(
            f"`task_or_model` must be a task or a model of this library, got {type(task_or_model)}."
        )
    if has_adapters(model):
        model = merge_lora(model)
    token_ids = {}
    if task is not None:
        for role in ("pad", "bos", "eos"):
            index = getattr(task.tokenizer, f"{role}_id")
            token_ids[f"{role}_token_id"] = index if index >= 0 else None
    with atomic_folder(folder, overwrite) as partial:
        labels = None if task is None else task.metadata.get("labels")
        write_model(model, partial, token_ids, labels)
        if getattr(model, "head", None) == "sentence_embedder":
            _write_pooling(model, partial)
        if task is not None:
            tokenizers.to_hugging_face(task.tokenizer, partial)
            template = task.metadata.get("chat_template")
            if template is not None:
                (partial / "chat_template.jinja").write_text(template, "utf-8")
            if task.metadata.get("end_token_ids"):
                ends = json.dumps({"eos_token_id": list(task.end_token_ids)}, indent=2)
                (partial / "generation_config.json").write_text(ends + "\n", "utf-8")


def _end_token_ids(folder, config, vocabulary_size):
    """Return the end tokens from generation_config.json, or else from config.json."""
    path, settings = folder / "config.json", config
    if (folder / "generation_config.json").is_file():
        path = folder / "generation_config.json"
        settings = {**config, **read_json(path)}
    ids = settings.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise InputError(f"{path}: `eos_token_id` must be an int or a list of ints, got {ids!r}.")
    return [token for token in ids if 0 <= token < vocabulary_size]  # others are never generated


def _pooling(folder):
    """Return the pooling of sentence-transformers' files as options of `sentence_embedder`."""
    modules = folder / "modules.json"
    normalize = True
    if modules.is_file():
        try:
            kinds = [str(row["type"]) for row in read_json_value(modules)]
        except (TypeError, KeyError) as error:
            raise InputError(f"{modules} is not a list of modules: {error!r}.") from None
        expected = [_MODULE + name for name in ("Transformer", "Pooling", "Normalize")]
        if kinds not in (expected, expected[:2]):
            raise InputError(
                f"{modules}: the modules must be {', '.join(expected[:2])} and optionally "
                f"{expected[2]}, got {', '.join(kinds)}."
            )
        normalize = kinds == expected
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return {"pooling": "mean", "normalize": normalize}
    fields = Fields(read_json(path), path)
    modes = [name for name, on in fields.row.items() if name.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise InputError(
            f"{path}: exactly one of {', '.join(_POOLINGS)} must be true, got "
            f"{', '.join(modes) or 'none'}."
        )
    return {"pooling": _POOLINGS[modes[0]], "normalize": normalize}


def _write_pooling(model, folder):
    options = model.options
    if options["projection_dim"]:
        raise InputError(
            "sentence-transformers' files do not support `projection_dim`; write the model without "
            "its projection."
        )
    pooling = options["pooling"] or "mean"
    modes = {name: mode == pooling for name, mode in _POOLINGS.items()}
    row = {"word_embedding_dimension": model.config.hidden_dim, **modes}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(row, indent=2) + "\n", "utf-8")
    steps = ["Transformer", "Pooling"] + ["Normalize"] * options["normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": _MODULE + step}
        for i, step in enumerate(steps)
    ]
    if options["normalize"]:
        (folder / paths[2]).mkdir()
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", "utf-8")
