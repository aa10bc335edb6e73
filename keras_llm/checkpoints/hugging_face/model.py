"""Read and write models as Hugging Face config.json and safetensors."""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Collection

from keras_llm import models
from keras_llm.checkpoints.hugging_face import tensors, weight_mapping
from keras_llm.checkpoints.hugging_face.decoders import (
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN3,
)
from keras_llm.checkpoints.hugging_face.encoders import BERT, DISTILBERT, ROBERTA, T5
from keras_llm.checkpoints.hugging_face.family import Family
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.errors import InputError
from keras_llm.json_files import read_json
from keras_llm.layers import Alibi, RelativeBias, Rotary
from keras_llm.models.deferred import described
from keras_llm.types import JSON, PathLike

# A config is written as the first of these families that supports all of it.
FAMILIES = {
    family.model_type: family
    for family in (
        *(GPT2, LLAMA, MISTRAL, QWEN3, GEMMA2, GEMMA3, MIXTRAL),
        *(BERT, DISTILBERT, ROBERTA, T5),
    )
}
CONFIG_FILE = "config.json"
# Config fields that affect training but not the computation of the model.
_TRAINING = ("dropout", "initializer_range", "load_balance_loss", "router_z_loss")


def load_model(folder: PathLike, dtype: str | None = None) -> models.ConfiguredModel:
    """Load the model of a Hugging Face folder without its tokenizer.

    All names and shapes are checked before any weight is set; tensors are read one by one.

    Args:
        folder: str or path, with `config.json` and safetensors.
        dtype: Keras dtype policy of the model. Defaults to the global policy; weights are
            converted to it.

    Returns:
        A model from `models.causal_lm`, `models.encoder` or `models.seq2seq`, or a head model if
        `config.json` names a class with a supported head.

    Raises:
        InputError: if a field or tensor is missing, wrong or not supported; the message names it
            and the file.
    """
    return read_model(folder, dtype)


def read_model(
    folder: PathLike, dtype: str | None = None, heads: Collection[str] | None = None
) -> models.ConfiguredModel:
    """Load a model as `load_model` does, dropping heads not in `heads`; None keeps all heads."""
    folder = pathlib.Path(folder)
    row = read_json(folder / CONFIG_FILE)
    family = _family(row, folder / CONFIG_FILE)
    config = family.read_config(row, folder / CONFIG_FILE)
    checkpoint = tensors.open_folder(folder)
    for pattern, now in family.renamed:
        checkpoint = checkpoint.renamed(functools.partial(re.sub, pattern, now))
    if family.prefix and not any(name.startswith(family.prefix) for name in checkpoint):
        family = family.without_prefix()
    if family.head_decides and "lm_head.weight" in checkpoint and config.tie_embeddings:
        tied = weight_mapping.same_tensor(
            checkpoint, "lm_head.weight", family.copies["lm_head.weight"]
        )
        config = dataclasses.replace(config, tie_embeddings=tied)
    weight_mapping.check_sizes(config, checkpoint)
    head, options = _head(family, row, folder / CONFIG_FILE)
    if heads is not None and head not in heads:
        head, options = None, None
    model = described(
        lambda: models.build(config, head, options, dtype=dtype), folder / CONFIG_FILE
    )
    links = family.links(model, row)
    weight_mapping.check(
        links, checkpoint, family.ignored, family.copies, f"{family.model_type} {head or 'model'}"
    )
    weight_mapping.assign(model, links, checkpoint)
    return model


def write_model(
    model: models.ConfiguredModel,
    folder: PathLike,
    token_ids: dict[str, int | None] | None = None,
    labels: list[str] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` into an existing folder.

    Args:
        model: a model of this library.
        folder: str or path.
        token_ids: dict with `pad_token_id`, `bos_token_id` and `eos_token_id`, or None.
        labels: list of str, the class names of a classifier, or None.

    Raises:
        InputError: if no Hugging Face family computes the same as the model.
    """
    head = getattr(model, "head", None)
    options = getattr(model, "options", None) or {}
    if head == "text_classifier" and options["pooling"] not in (None, "first"):
        raise InputError(
            "Hugging Face classifiers use the first token; the `pooling` of this model is "
            f"{options['pooling']!r}."
        )
    if head == "sentence_embedder":  # stored in separate files of the folder
        head = None
    family, row = describe(model.config, head, options)
    row = {
        "model_type": family.model_type,
        "architectures": [family.architectures[head]],
        **{name: value for name, value in (token_ids or {}).items() if name not in row},
        **row,
    }
    if head in ("text_classifier", "token_classifier"):
        labels = labels or default_labels(options["num_classes"])
        row["id2label"] = dict(enumerate(labels))
        row["label2id"] = {label: i for i, label in enumerate(labels)}
        name = "seq_classif_dropout" if "activation" in options else "classifier_dropout"
        row[name] = options["dropout"]
    written = weight_mapping.collect(model, family.links(model, row, with_head=head is not None))
    row["dtype"] = next(iter(written.values())).dtype.name
    folder = pathlib.Path(folder)
    (folder / CONFIG_FILE).write_text(json.dumps(row, indent=2) + "\n", "utf-8")
    tensors.write_file(folder / tensors.WEIGHTS_FILE, written)


def describe(
    config: models.TransformerConfig, head: str | None = None, options: JSON | None = None
) -> tuple[Family, JSON]:
    """Find the family that computes the same as a config; return it and its config.json.

    A family supports a config if the config.json that it writes reads back as the same
    computation.

    Raises:
        InputError: if no family matches; the message names the fields that the closest one lacks.
    """
    best = None
    for family in FAMILIES.values():
        if head not in family.architectures or family.write is None:
            continue
        if head == "text_classifier" and (options or {}).get("activation", "tanh") != family.pooler:
            continue
        try:
            row = family.write(config)
            lost = _differences(config, family.read(Fields(row, "")))
        except (ValueError, AttributeError, TypeError):  # a different kind of config
            continue
        if not lost:
            return family, row
        if best is None or len(lost) < len(best[1]):
            best = family, lost
    if best is None:
        what = f"a {head} head on " if head else ""
        raise InputError(
            f"no Hugging Face family supports {what}this {type(config).__name__}; supported "
            f"families are {', '.join(FAMILIES)}."
        )
    family, lost = best
    lost = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
    raise InputError(
        f"no Hugging Face family supports this model; the closest, {family.model_type}, does not "
        f"support {lost}."
    )


def _family(row, path):
    model_type = row.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{path}: `model_type` is {model_type!r}; it must be one of {', '.join(FAMILIES)}."
        )
    if row.get("quantization_config") is not None:
        raise InputError(
            f"{path}: `quantization_config` means that the weights are quantized, which is not "
            "supported; use the original weights or a GGUF file."
        )
    return FAMILIES[model_type]


def _head(family, row, path):
    """Return the head that config.json names, and its options; None for unsupported classes."""
    fields = Fields(row, path)
    for architecture in fields.get("architectures", list, []):
        for head, name in family.architectures.items():
            if name == architecture:
                return head, _options(head, fields, family)
    return None, None


def _options(head, fields, family):
    if head not in ("text_classifier", "token_classifier"):
        return None
    labels = fields.part("id2label").row
    options = {
        "num_classes": len(labels) or fields.get("num_labels", int, 2),
        "dropout": fields.get("classifier_dropout", float, 0.1),
    }
    if head != "text_classifier":
        return options
    options["pooling"] = "first"
    if family.pooler != "tanh":
        options["activation"] = family.pooler
        options["dropout"] = fields.get("seq_classif_dropout", float, 0.2)
    return options


def default_labels(count: int) -> list[str]:
    """Return the names that Hugging Face gives to unnamed classes."""
    return [f"LABEL_{i}" for i in range(count)]


def labels_of(folder: pathlib.Path, count: int) -> list[str]:
    """Return the class names of a classifier in config.json, a list of str.

    Raises:
        InputError: if their keys are not 0, 1, ...
    """
    fields = Fields(read_json(pathlib.Path(folder) / CONFIG_FILE), folder / CONFIG_FILE)
    labels = fields.part("id2label").row
    if not labels:
        return default_labels(count)
    if sorted(labels) != sorted(map(str, range(count))):
        raise fields.error("id2label", f"have the keys 0 .. {count - 1}")
    return [str(labels[str(i)]) for i in range(count)]


def computes_same(config: models.TransformerConfig, other: models.TransformerConfig) -> bool:
    """Return whether models of two configs with the same weights compute the same."""
    return type(config) is type(other) and not _differences(config, other)


def _differences(config, other):
    """List the fields in which two configs differ in their computation."""
    if type(config) is not type(other):
        raise TypeError("configs of two classes")
    first, second = _computation(config), _computation(other)
    lost = [name for name in first if not _equal(first[name], second[name])]
    if config.local_position is None and "local_position" in lost:
        lost.remove("local_position")
        lost = list(dict.fromkeys(["position", *lost]))
    return lost


def _computation(config):
    """Return the fields of a config that affect the computation, in a canonical form."""
    row = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in _TRAINING:
        del row[name]
    layers = range(config.num_layers)
    row["window_pattern"] = [config.window(i) for i in layers]
    row["sliding_window"] = None
    row["local_position"] = [_position(config.attention_position(i)) for i in layers]
    row["position"] = _position(config.position)
    if isinstance(config.position, (Rotary, Alibi)):
        row["position"] = None  # covered by the layers
    if row["attention_scale"] is None:
        row["attention_scale"] = config.head_dim**-0.5
    if not config.num_experts:
        row["experts_per_token"] = None
    return row


def _position(option):
    if isinstance(option, RelativeBias):
        return [option.num_buckets, option.max_distance]  # models set `bidirectional`
    return option


def _equal(first, second):
    if isinstance(first, float) and isinstance(second, (int, float)):
        return math.isclose(first, second, rel_tol=1e-6)
    return first == second
