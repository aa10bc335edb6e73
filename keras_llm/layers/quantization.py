"""Save and restore which sublayers of a layer or model are quantized or have adapters."""

from typing import Self

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.keras_internals import PostBuildHook, flatten_layers, without_collections
from keras_llm.layers.adapters import (
    DoraDense,
    add_magnitude,
    saves_adapters,
    separate_adapters,
    train_only,
    trainable_names,
)
from keras_llm.types import JSON, Tensor

MODES = ("int8", "int4", "float8")
_REASONS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, NotImplementedError)


def quantized_layers(owner: keras.layers.Layer) -> JSON:
    """Describe the quantized and the adapted sublayers of a layer or model as plain JSON types.

    Their adapters (LoRA, DoRA) are saved apart from their weights from now on (see
    `separate_adapters`). If there are adapters, the description also has the names of all weights
    that are trained.

    Returns:
        A dict from the path of a sublayer, within `owner` if that is a layer, to a dict that
        `quantize_layers` reads. Empty if no sublayer is quantized or has adapters.

    Raises:
        InputError: if a sublayer is quantized in a mode that cannot be restored.
    """
    layers = _layers(owner)
    leaves = {path: layer for path, layer in layers.items() if not flatten_layers(layer)}
    is_adapted = any(saves_adapters(layer) for layer in leaves.values())
    trained = {path: trainable_names(layer) for path, layer in layers.items() if is_adapted}
    return {
        path: _describe(layer, trained.get(path))
        for path, layer in layers.items()
        if trained.get(path)
        or (path in leaves and (layer.quantization_mode is not None or saves_adapters(layer)))
    }


def quantize_layers(owner: keras.layers.Layer, rows: JSON) -> None:
    """Quantize and adapt the sublayers of a built layer or model as `quantized_layers` described.

    If one has adapters, only the weights that were trained are trainable. A layer that is quantized
    or adapted already, because another model shares it, stays as it is.

    Raises:
        InputError: if `owner` does not have one of the sublayers, or Keras cannot quantize it.
    """
    layers = _layers(owner)
    if missing := sorted(set(rows) - set(layers)):
        raise InputError(f"`{owner.name}` has no layer {missing[0]!r} to quantize.")
    if any(row["lora"] for row in rows.values()):
        for weight in owner.weights:
            weight.trainable = False
    with without_collections():
        for path, row in rows.items():
            try:
                _restore(layers[path], row)
            except _REASONS as error:
                raise InputError(f"{path!r} cannot be quantized as described: {error}") from error


def embedding_table(embedding: keras.layers.Embedding) -> Tensor:
    """Return the table (V, D) of an embedding layer, dequantized if it is quantized."""
    if embedding.quantization_mode is None:
        return ops.convert_to_tensor(embedding.embeddings)
    return embedding(ops.arange(embedding.input_dim))


class QuantizableLayer(PostBuildHook, keras.layers.Layer):
    """The base class of layers with sublayers that `model.quantize(...)` quantizes.

    The config of the layer describes its quantized sublayers, so that a saved model and a clone
    have them too.
    """

    quantized: JSON | None = None  # from a config, until the layer is built

    def after_build(self) -> None:
        rows, self.quantized = self.quantized, None
        if rows:
            quantize_layers(self, rows)

    def get_config(self) -> JSON:
        rows = quantized_layers(self) if self.built else self.quantized
        return {**super().get_config(), **({"quantized": rows} if rows else {})}

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        config = dict(config)
        rows = config.pop("quantized", None)
        layer = cls(**config)
        layer.quantized = rows
        if rows and layer.built:
            layer.after_build()
        return layer


def _describe(layer, trained):
    mode = layer.quantization_mode
    row = {"mode": mode, "config": None, "amax_history_length": None, "lora": None}
    if saves_adapters(layer):
        separate_adapters(layer)
        is_dora = isinstance(layer, DoraDense)
        row["lora"] = {"rank": layer.lora_rank, "alpha": layer.lora_alpha, "dora": is_dora}
    if trained is not None:
        row["trained"] = trained
    if mode is None:
        return row
    if mode not in MODES:
        raise InputError(
            f"{layer.path!r} is quantized with {mode!r}, which cannot be saved; the modes "
            f"{', '.join(MODES)} can."
        )
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        raise InputError(
            f"{layer.path!r} is quantized by a `DTypePolicyMap`, which Keras cannot save; "
            "use `quantize` instead."
        )
    config = layer.quantization_config
    if config is None and mode == "int4":
        config = keras.quantizers.Int4QuantizationConfig(
            block_size=getattr(policy, "block_size", None)
        )
    row["config"] = keras.saving.serialize_keras_object(config)
    row["amax_history_length"] = getattr(policy, "amax_history_length", None)
    return row


def _restore(layer, row):
    if row["mode"] is not None and layer.quantization_mode is None:
        _quantize(layer, row)
    lora = row["lora"]
    if lora and not layer.lora_enabled:
        layer.enable_lora(lora["rank"], lora_alpha=lora["alpha"])
        if lora.get("dora"):
            add_magnitude(layer, "ones")
        separate_adapters(layer)
    if "trained" in row:
        train_only(layer, row["trained"])
    elif lora:  # written before the names were saved
        train_only(layer, [name for name in trainable_names(layer) if "lora" in name])


def _quantize(layer, row):
    if row["mode"] == "float8":
        layer.dtype_policy = keras.dtype_policies.QuantizedFloat8DTypePolicy(
            "float8", layer.dtype_policy.name, amax_history_length=row["amax_history_length"]
        )
        return
    config = keras.saving.deserialize_keras_object(row["config"])
    if config is not None and config.mode != row["mode"]:
        raise ValueError(f"the config is of mode {config.mode!r}, not {row['mode']!r}")
    layer.quantize(row["mode"], type_check=False, config=config)


def _layers(owner):
    """Return the built layers in a layer or model by path, without a layer's path as prefix.

    A layer may also hold a layer of another one, such as a shared embedding; it is left out.
    """
    prefix = "" if isinstance(owner, keras.Model) else f"{owner.path}/"
    layers = [layer for layer in flatten_layers(owner) if layer.path]
    return {
        layer.path.removeprefix(prefix): layer for layer in layers if layer.path.startswith(prefix)
    }
