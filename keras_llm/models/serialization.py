"""Convert models to plain JSON types and back."""

from collections.abc import Callable
from typing import Any

import keras

from keras_llm.errors import InputError
from keras_llm.json_files import check_arguments, check_fields
from keras_llm.layers.quantization import MODES, quantize_layers
from keras_llm.models import heads
from keras_llm.models.base import ConfiguredModel, config_from_dict, config_to_dict
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.composed import ComposedLM, ComposedModel, with_dtype
from keras_llm.models.composed_head import ComposedHead
from keras_llm.models.composed_seq2seq import ComposedSeq2Seq
from keras_llm.models.config import (
    ComposedConfig,
    ComposedSeq2SeqConfig,
    TransformerConfig,
    WordVectorsConfig,
)
from keras_llm.models.encoder import Encoder
from keras_llm.models.head_layers import HEADS
from keras_llm.models.heads import HeadModel
from keras_llm.models.seq2seq import Seq2Seq
from keras_llm.models.word_vectors import WordVectors
from keras_llm.types import JSON

_CLASSES: dict[type, Callable[..., ConfiguredModel]] = {
    model.config_class: model for model in (CausalLM, Encoder, Seq2Seq, WordVectors)
}
_QUANTIZED: dict[str, Any] = {
    "mode": str | None,
    "config": dict | None,
    "amax_history_length": int | None,
    "lora": dict | None,
}


def build(
    config: TransformerConfig | WordVectorsConfig,
    head: str | None = None,
    options: JSON | None = None,
    dtype: str | None = None,
) -> ConfiguredModel:
    """Build a model from a config of any class, with fresh weights.

    Args:
        config: a `CausalLMConfig`, `EncoderConfig`, `Seq2SeqConfig` or `WordVectorsConfig`.
        head: str, the name of the function that builds a head model, e.g. "text_classifier"; or
            None for the model without a head.
        options: dict, the options of the head.
        dtype: Keras dtype policy of all layers.

    Raises:
        InputError: if the class of `config` or the head is unknown.
    """
    if type(config) not in _CLASSES:
        names = ", ".join(config_class.__name__ for config_class in _CLASSES)
        raise InputError(f"build: `config` must be one of {names}, got {type(config)}.")
    if head is None:
        return _CLASSES[type(config)](config, dtype=dtype)
    if head not in HEADS:
        raise InputError(f"build: unknown head {head!r}; available heads: {', '.join(HEADS)}.")
    backbone: Any = config  # the constructor checks its class
    return HeadModel(backbone, head, options, dtype=dtype)


def describe(model: ConfiguredModel) -> JSON:
    """Return the description of a model that `restore` needs, as plain JSON types."""
    config = model.get_config()
    row = {"model": config_to_dict(model.config)}
    if isinstance(model, ComposedModel):
        row["graph"] = config["model"]
        if "head" in config:
            row["head"] = {"name": config["head"]}
    else:
        row["dtype"] = config["dtype"]
    if "quantized" in config:
        row["quantized"] = config["quantized"]
    if isinstance(model, HeadModel):
        row["head"] = {"name": model.head, "options": model.options}
    return row


def restore(row: JSON) -> ConfiguredModel:
    """Rebuild a model from the output of `describe`, with fresh weights; ignore other keys.

    Raises:
        InputError: if a class, a field or the head is unknown, or a field is missing or has another
            type.
    """
    head = row.get("head") or {}
    if not isinstance(head, dict):
        raise InputError(f"`head` must be an object with `name` and `options`, got {head!r}.")
    name, options = head.get("name"), head.get("options") or {}
    check_arguments(build, {"head": name, "options": options}, "`head`")
    if name in HEADS and "graph" not in row:
        check_arguments(getattr(heads, name), options, f"the options of {name}")
    dtype, quantized = row.get("dtype"), row.get("quantized") or {}
    check_fields({"dtype": dtype}, {"dtype": str | dict | None}, "a model")
    _check_objects(dtype, keras.dtype_policies, keras.dtype_policies.DTypePolicy)
    _check_quantized(quantized)
    config = config_from_dict(row["model"])
    if "graph" in row:
        model = _composed(config, row["graph"], name, dtype)
    else:
        model = build(config, name, options or None, dtype=dtype)
    if quantized:
        quantize_layers(model, quantized)
    return model


def _composed(config, graph, head, dtype):
    """Rebuild a composed model; with a `dtype`, all its layers have that dtype policy."""
    check_fields({"graph": graph}, {"graph": dict}, "a model")
    if dtype is not None:
        graph = with_dtype(graph, dtype)
    if not isinstance(config, ComposedConfig):
        raise InputError(f"a model with a `graph` needs a ComposedConfig, got {type(config)}.")
    if head is not None:
        return ComposedHead(config, graph, head)
    is_seq2seq = isinstance(config, ComposedSeq2SeqConfig)
    return (ComposedSeq2Seq if is_seq2seq else ComposedLM)(config, graph)


def _check_quantized(rows):
    """Raise InputError unless `rows` has the form of the output of `quantized_layers`."""
    check_fields({"quantized": rows}, {"quantized": dict[str, dict]}, "a model")
    for path, row in rows.items():
        where = f"`quantized` of {path!r}"
        check_fields({"trained": [], **row}, {**_QUANTIZED, "trained": list[str]}, where)
        if row["mode"] not in (None, *MODES):
            raise InputError(f"{where}: `mode` must be one of {MODES}, got {row['mode']!r}.")
        numbers = [row["amax_history_length"] or row["mode"] != "float8"]
        if row["lora"] is not None:
            lora = {"rank": int, "alpha": float, "dora": bool}
            check_fields({"dora": False, **row["lora"]}, lora, where)
            numbers.append(row["lora"]["rank"])
        if min(numbers) < 1:
            raise InputError(f"{where}: `amax_history_length` and `rank` must be positive ints.")
        quantizers = keras.quantizers
        _check_objects(
            row["config"], quantizers, (quantizers.QuantizationConfig, quantizers.Quantizer)
        )


def _check_objects(value, module, kinds):
    """Raise InputError if Keras would build an object of another kind from a JSON value.

    Args:
        value: any JSON value.
        module: the public Keras module of the kinds.
        kinds: class or tuple of classes; registered subclasses are permitted, too.
    """
    if isinstance(value, dict):
        if "class_name" in value or "registered_name" in value:
            fields = {"class_name": str, "module": str | None, "registered_name": str | None}
            value = {"module": None, "registered_name": None, **value}
            check_fields(value, fields, "a Keras object")
            kind = keras.saving.get_registered_object(value["registered_name"] or "")
            if kind is None and value["module"] in ("keras", module.__name__):
                kind = getattr(module, value["class_name"], None)
            if not isinstance(kind, type) or not issubclass(kind, kinds):
                name = value["class_name"]
                raise InputError(f"a model: the class {name!r} is not one of {module.__name__}.")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_objects(item, module, kinds)
