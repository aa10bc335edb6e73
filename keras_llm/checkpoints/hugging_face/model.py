"""Read and write models as Hugging Face config.json and safetensors."""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Collection

from keras_llm import hub, models
from keras_llm.checkpoints.hugging_face import tensors, weight_mapping
from keras_llm.checkpoints.hugging_face.decoders import (
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
)
from keras_llm.checkpoints.hugging_face.encoder_decoders import T5
from keras_llm.checkpoints.hugging_face.encoders import BERT, DISTILBERT, ROBERTA
from keras_llm.checkpoints.hugging_face.family import Family
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.checkpoints.hugging_face.layer_norm_decoders import GPT_NEOX, OPT
from keras_llm.errors import InputError
from keras_llm.json_files import read_json
from keras_llm.keras_internals import flatten_layers
from keras_llm.layers import Alibi, RelativeBias, Rotary
from keras_llm.models.deferred import described
from keras_llm.types import JSON, PathLike

# A config is written as the first of these families that supports all of it.
FAMILIES = {
    family.model_type: family
    for family in (
        *(
            GPT2,
            OPT,
            GPT_NEOX,
            LLAMA,
            MISTRAL,
            QWEN2,
            QWEN3,
            SMOLLM3,
            PHI3,
            GEMMA2,
            GEMMA3,
            MIXTRAL,
        ),
        *(BERT, DISTILBERT, ROBERTA, T5),
    )
}
CONFIG_FILE = "config.json"
SOURCE = "Hugging Face, "  # before the family in the metadata of a task
MULTI_LABEL = "multi_label_classification"
_REGRESSION = "regression"
_PROBLEM_TYPES = (_REGRESSION, "single_label_classification", MULTI_LABEL)
_LABELED = ("text_classifier", "text_regressor", "token_classifier")
# Activations of the score of a cross-encoder, by the last part of their names.
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": None}
# Config fields that affect training but not the computation of the model.
_TRAINING = ("dropout", "initializer_range", "load_balance_loss", "router_z_loss")


def load_model(folder: PathLike, dtype: str | None = None) -> models.ConfiguredModel:
    """Load the model of a Hugging Face folder without its tokenizer.

    All names and shapes are checked before any weight is set; tensors are read one by one.

    Args:
        folder: str or path, with `config.json` and safetensors; or the name of a repository of the
            hub, see `from_hugging_face`.
        dtype: Keras dtype policy of the model. Defaults to the global policy; weights are
            converted to it.

    Returns:
        A model from `models.causal_lm`, `models.encoder` or `models.seq2seq`, or a head model if
        `config.json` names a class with a supported head.

    Raises:
        InputError: if a field or tensor is missing, wrong or not supported; the message names it
            and the file.
    """
    return read_model(hub.folder_of(folder), dtype)


def read_model(
    folder: PathLike,
    dtype: str | None = None,
    heads: Collection[str] | None = None,
    with_sigmoid: bool = False,
) -> models.ConfiguredModel:
    """Load a model as `load_model` does.

    Args:
        folder, dtype: see `load_model`.
        heads: names of the heads to keep; None for all.
        with_sigmoid: bool. Whether a model with one output applies the sigmoid that the text
            classification pipeline of transformers applies.
    """
    folder = pathlib.Path(folder)
    row = read_json(folder / CONFIG_FILE)
    family = _family(row, folder / CONFIG_FILE)
    config = family.read_config(row, folder / CONFIG_FILE)
    checkpoint = tensors.open_folder(folder)
    for pattern, now in family.renamed:
        checkpoint = checkpoint.renamed(functools.partial(re.sub, pattern, now))
    if family.prefix and not any(name.startswith(family.prefix) for name in checkpoint):
        family = family.without_prefix()
    checkpoint = _with_tied(checkpoint, family, config)
    config = _with_stored_head(config, family, checkpoint, is_embedder=heads == ())
    weight_mapping.check_sizes(config, checkpoint)
    head, options = _head(family, row, folder / CONFIG_FILE)
    if heads is not None and head not in heads:
        head, options = None, None
    if head == "text_regressor" and not with_sigmoid:
        options = {**options, "output_activation": None}
    if head == "masked_lm":
        Fields(row, folder / CONFIG_FILE).refuse_unless(tie_word_embeddings=True)
        if family.masked_lm_activation not in (None, config.activation):
            options = {"activation": family.masked_lm_activation}
    model = described(
        lambda: models.build(config, head, options, dtype=dtype), folder / CONFIG_FILE
    )
    links = family.links(model, row)
    weight_mapping.check(
        links, checkpoint, family.ignored, family.copies, f"{family.model_type} {head or 'model'}"
    )
    weight_mapping.assign(model, links, checkpoint)
    model.checkpoint_family = family.model_type
    return model


def write_model(
    model: models.ConfiguredModel,
    folder: PathLike,
    token_ids: dict[str, int | None] | None = None,
    metadata: JSON | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` into an existing folder.

    Args:
        model: a model of this library.
        folder: str or path.
        token_ids: dict with `pad_token_id`, `bos_token_id` and `eos_token_id`, or None.
        metadata: dict, the metadata of the task, with the `labels` of a classifier; or None.

    Raises:
        InputError: if the model is quantized, or no Hugging Face family computes the same.
    """
    if any(getattr(layer, "quantization_mode", None) for layer in flatten_layers(model)):
        raise InputError(
            "the model is quantized, and Hugging Face checkpoints are written without "
            "quantization; write the model that was quantized."
        )
    head = getattr(model, "head", None)
    options, metadata = getattr(model, "options", None) or {}, metadata or {}
    if head in ("text_classifier", "text_regressor") and options["pooling"] not in (None, "first"):
        raise InputError(
            "Hugging Face classifiers use the first token; the `pooling` of this model is "
            f"{options['pooling']!r}."
        )
    if head == "sentence_embedder":  # stored in separate files of the folder
        head = None
    source = str(metadata.get("source", ""))
    preferred = model.checkpoint_family or source.removeprefix(SOURCE)
    family, row = describe(model.config, head, options, preferred)
    row = {
        "model_type": family.model_type,
        "architectures": [family.architecture(head)],
        **row,
        **{name: index for name, index in (token_ids or {}).items() if row.get(name) is None},
    }
    if head in _LABELED:
        labels = metadata.get("labels") or default_labels(options.get("num_classes", 1))
        row["id2label"] = dict(enumerate(labels))
        row["label2id"] = {label: i for i, label in enumerate(labels)}
        name = "seq_classif_dropout" if "activation" in options else "classifier_dropout"
        row[name] = options["dropout"]
        if metadata.get("multi_label"):
            row["problem_type"] = MULTI_LABEL
        if head == "text_regressor" and not options.get("output_activation"):
            row["problem_type"] = _REGRESSION
    written = weight_mapping.collect(model, family.links(model, row, with_head=head is not None))
    row["dtype"] = next(iter(written.values())).dtype.name
    folder = pathlib.Path(folder)
    (folder / CONFIG_FILE).write_text(json.dumps(row, indent=2) + "\n", "utf-8")
    tensors.write_file(folder / tensors.WEIGHTS_FILE, written)


def describe(
    config: models.TransformerConfig,
    head: str | None = None,
    options: JSON | None = None,
    preferred: str | None = None,
) -> tuple[Family, JSON]:
    """Find the family that computes the same as a config; return it and its config.json.

    A family supports a config if the config.json that it writes reads back as the same
    computation.

    Args:
        config: the config of a model or backbone.
        head, options: the name and options of the head, or None.
        preferred: the name of the family to try first, or None.

    Raises:
        InputError: if no family matches; the message names the fields that the closest one lacks.
    """
    best = None
    for family in sorted(FAMILIES.values(), key=lambda family: family.model_type != preferred):
        if family.architecture(head) is None or family.write is None:
            continue
        pooler = (options or {}).get("activation", "tanh")
        if head in ("text_classifier", "text_regressor") and pooler != family.pooler:
            continue
        if head == "masked_lm" and isinstance(config, models.EncoderConfig):
            activation = (options or {}).get("activation", config.activation)
            if activation != (family.masked_lm_activation or config.activation):
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
    Fields(row, path).refuse_unless(per_layer_config=None)
    return FAMILIES[model_type]


def _with_tied(checkpoint, family, config):
    """Return the tensors with a tied matrix under its own name, if only a copy is stored."""
    stored = {
        name: copied
        for name, copied in family.copies.items()
        if copied not in checkpoint and name in checkpoint
        if config.tie_embeddings or name != _head_name(family)
    }
    names = {copied: name for name, copied in stored.items()}  # one of several copies
    if not names:
        return checkpoint
    renamed = {name: copied for copied, name in names.items()}
    return checkpoint.renamed(lambda name: renamed.get(name, name))


def _head_name(family):
    """Return the name of the tensor of a separate head."""
    return f"{family.names.get('head', 'lm_head')}.weight"


def _with_stored_head(config, family, checkpoint, is_embedder):
    """Return the config with the ties that the tensors of a checkpoint require."""
    head = _head_name(family)
    tied = config.tie_embeddings
    if family.head_decides and tied and head in checkpoint:
        tied = weight_mapping.same_tensor(checkpoint, head, family.copies[head])
    # An embedding model has no use for a head.
    may_lack_head = family.head_decides or (is_embedder and head in family.copies)
    if may_lack_head and head not in checkpoint:
        tied = True
    return dataclasses.replace(config, tie_embeddings=tied)


def _head(family, row, path):
    """Return the head that config.json names, and its options; None for unsupported classes."""
    fields = Fields(row, path)
    for architecture in fields.get("architectures", list, []):
        for head, name in family.architectures.items():
            if name == architecture:
                return _labeled(head, fields, family) if head in _LABELED else (head, None)
    return None, None


def _labeled(head, fields, family):
    """Return the head of a class with labels, and its options."""
    count = len(fields.part("id2label").row) or fields.positive("num_labels", 2)
    default = fields.get("hidden_dropout_prob", float, 0.1)
    options = {"num_classes": count, "dropout": fields.rate("classifier_dropout", default)}
    if head == "token_classifier":
        return head, options
    options["pooling"] = "first"
    if family.pooler != "tanh":
        options["activation"] = family.pooler
        options["dropout"] = fields.rate("seq_classif_dropout", 0.2)
    problem = fields.get("problem_type", str, None)
    if problem not in (None, *_PROBLEM_TYPES):
        raise fields.error("problem_type", f"be one of {', '.join(_PROBLEM_TYPES)}")
    if count > 1:
        if problem == _REGRESSION:
            raise fields.error("problem_type", f"not be {problem!r} for several labels")
        return head, options
    if problem == "single_label_classification":
        raise fields.error("problem_type", f"not be {problem!r} for one label")
    del options["num_classes"]
    options["output_activation"] = None if problem == _REGRESSION else _score_activation(fields)
    return "text_regressor", options


def _score_activation(fields):
    """Return the activation of the only output of a classifier: "sigmoid" or None."""
    name = fields.get("sbert_ce_default_activation_function", str, None)
    own = fields.part("sentence_transformers")
    name = own.get("activation_fn", str, name)
    if name is None:
        return "sigmoid"
    if name.rpartition(".")[2] not in _ACTIVATIONS:
        raise own.error("activation_fn", f"be one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name.rpartition(".")[2]]


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
    layers, longest = range(config.num_layers), config.max_length
    # A window over all positions is none.
    row["window_pattern"] = [min(config.window(i) or longest, longest) for i in layers]
    row["sliding_window"] = None
    row["local_position"] = [_position(config.attention_position(i)) for i in layers]
    row["position"] = _position(config.position)
    if isinstance(config.position, (Rotary, Alibi)):
        row["position"] = None  # covered by the layers
    if row["attention_scale"] is None:
        row["attention_scale"] = config.head_dim**-0.5
    if not config.num_experts:
        row["experts_per_token"] = None
    for name in ("feed_forward_bias", "output_bias"):
        if row[name] is None:
            row[name] = config.use_bias
    return row


def _position(option):
    if isinstance(option, RelativeBias):
        return [option.num_buckets, option.max_distance]  # models set `bidirectional`
    return option


def _equal(first, second):
    if isinstance(first, float) and isinstance(second, (int, float)):
        return math.isclose(first, second, rel_tol=1e-6)
    return first == second
