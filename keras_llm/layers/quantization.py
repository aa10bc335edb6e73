"""Save and restore which sublayers of a layer or model Keras has quantized."""

from typing import Any, Self

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.keras_internals import PostBuildHook, flatten_layers, without_collections
from keras_llm.types import JSON, Tensor

MODES = ("int8", "int4", "float8")
_REASONS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, NotImplementedError)
_LORA_WEIGHTS = {
    "lora_a": ("lora_kernel_a", "lora_embeddings_a"),
    "lora_b": ("lora_kernel_b", "lora_embeddings_b"),
}


def quantized_layers(owner: keras.layers.Layer) -> JSON:
    """Describe the quantized sublayers of a layer or model as plain JSON types.

    Adapters (LoRA) of a quantized layer are part of the description, and are saved apart from its
    weights from now on (see `separate_adapters`).

    Returns:
        A dict from the path of a sublayer, within `owner` if that is a layer, to a dict that
        `quantize_layers` reads. Empty if no sublayer is quantized.

    Raises:
        InputError: if a sublayer is quantized in a mode that cannot be restored.
    """
    return {
        path: _describe(layer)
        for path, layer in _layers(owner).items()
        if layer.quantization_mode is not None and not flatten_layers(layer)
    }


def quantize_layers(owner: keras.layers.Layer, rows: JSON) -> None:
    """Quantize the sublayers of a built layer or model as `quantized_layers` described them.

    If one has adapters, all other weights of `owner` are frozen, as `training.add_lora` does. A
    layer that is quantized already, because another model shares it, stays as it is.

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


def separate_adapters(layer: keras.layers.Layer) -> None:
    """Make a quantized layer with adapters save them apart from its quantized weights.

    By default, Keras saves the sum of both, quantized again, which changes the outputs.
    """
    base = type(layer)
    if not issubclass(base, _SeparateAdapters):
        layer.__class__ = _CLASSES[base]


def embedding_table(embedding: keras.layers.Embedding) -> Tensor:
    """Return the table (V, D) of an embedding layer, dequantized if it is quantized."""
    if embedding.quantization_mode is None:
        return ops.convert_to_tensor(embedding.embeddings)
    return embedding(ops.arange(embedding.input_dim))


class _SeparateAdapters:
    """A mixin of a Keras layer that saves quantized weights and adapters apart."""

    def build(self: Any, input_shape: Any = None) -> None:
        alpha = self.lora_alpha
        super().build(input_shape)  # type: ignore[misc]
        self.lora_alpha = alpha  # Keras builds the adapters of a config with the default

    def save_own_variables(self: Any, store: Any) -> None:
        self.lora_enabled = False  # Keras then saves the weights without the adapters
        try:
            super().save_own_variables(store)  # type: ignore[misc]
        finally:
            self.lora_enabled = True
        for key, names in _LORA_WEIGHTS.items():
            store[key] = _first(self, names)

    def load_own_variables(self: Any, store: Any) -> None:
        super().load_own_variables(store)  # type: ignore[misc]
        for key, names in _LORA_WEIGHTS.items():
            if key in store.keys():  # noqa: SIM118 (a store is not iterable)
                _first(self, names).assign(store[key])


@keras.saving.register_keras_serializable("keras_llm")
class _Dense(_SeparateAdapters, keras.layers.Dense):
    pass


@keras.saving.register_keras_serializable("keras_llm")
class _Embedding(_SeparateAdapters, keras.layers.Embedding):
    pass


@keras.saving.register_keras_serializable("keras_llm")
class _ReversibleEmbedding(_SeparateAdapters, keras.layers.ReversibleEmbedding):
    pass


_CLASSES: dict[type, type] = {
    keras.layers.Dense: _Dense,
    keras.layers.Embedding: _Embedding,
    keras.layers.ReversibleEmbedding: _ReversibleEmbedding,
}


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


def _describe(layer):
    mode = layer.quantization_mode
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
    lora = None
    if getattr(layer, "lora_enabled", False):
        lora = {"rank": layer.lora_rank, "alpha": layer.lora_alpha}
        separate_adapters(layer)
    config = layer.quantization_config
    if config is None and mode == "int4":
        config = keras.quantizers.Int4QuantizationConfig(
            block_size=getattr(policy, "block_size", None)
        )
    return {
        "mode": mode,
        "config": keras.saving.serialize_keras_object(config),
        "amax_history_length": getattr(policy, "amax_history_length", None),
        "lora": lora,
    }


def _restore(layer, row):
    if layer.quantization_mode is None:
        _quantize(layer, row)
    if row["lora"]:
        if not layer.lora_enabled:
            layer.enable_lora(row["lora"]["rank"], lora_alpha=row["lora"]["alpha"])
            separate_adapters(layer)
        for names in _LORA_WEIGHTS.values():
            _first(layer, names).trainable = True


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


def _first(layer, names):
    return next(getattr(layer, name) for name in names if hasattr(layer, name))
