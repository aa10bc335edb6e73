"""Save low-rank adapters (LoRA, DoRA) of Keras layers apart from the weights they adapt.

Keras itself saves the sum of both and sets the adapters to zero when it loads it: the loss of the
next step is the same, but no gradient reaches an adapter whose two factors are zero, and the state
of the optimizer belongs to other values.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_llm.keras_internals import adding_weights, own_weights
from keras_llm.types import JSON, Tensor

PARTS = {
    "lora_a": ("lora_kernel_a", "lora_embeddings_a"),
    "lora_b": ("lora_kernel_b", "lora_embeddings_b"),
}
"""The attributes of a layer's two factors; the first is that of `Dense` layers."""

_MERGES: contextvars.ContextVar[bool] = contextvars.ContextVar("merges", default=False)


@contextlib.contextmanager
def merging_adapters() -> Iterator[None]:
    """Make models describe and save adapters as part of the weights, except quantized ones."""
    token = _MERGES.set(True)
    try:
        yield
    finally:
        _MERGES.reset(token)


def saves_adapters(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is saved with adapters."""
    if not getattr(layer, "lora_enabled", False):
        return False
    return layer.quantization_mode is not None or not _MERGES.get()


def merged_row(row: Any) -> Any:
    """Return the config of layers, as Keras serializes it, without adapters and not frozen.

    Those of quantized layers, which cannot be merged, stay. Unless adapters are merged, the config
    is returned as it is.
    """
    return _merged(row) if _MERGES.get() else row


def _merged(row):
    if isinstance(row, list):
        return [_merged(item) for item in row]
    if not isinstance(row, dict):
        return row
    row = {name: _merged(item) for name, item in row.items()}
    config = row.get("config")
    if not isinstance(config, dict) or "trainable" not in config:
        return row
    config["trainable"] = True
    if config.get("lora_rank") is not None and config.get("quantization_mode") is None:
        config["lora_rank"] = None
        config.pop("trainable_weights", None)
        if str(row.get("registered_name")).startswith("keras_llm>"):  # see `separate_adapters`
            name = row["class_name"].removeprefix("Adapted").removeprefix("Dora")
            row |= {"module": "keras.layers", "class_name": name, "registered_name": None}
    return row


def adapter_part(layer: keras.layers.Layer, part: str) -> keras.Variable:
    """Return a factor, "lora_a" or "lora_b", of a layer with adapters."""
    return next(getattr(layer, name) for name in PARTS[part] if hasattr(layer, name))


def separate_adapters(layer: keras.layers.Layer) -> None:
    """Make a layer with adapters save them apart from its weights.

    Layers of other classes than Keras's dense and embedding layers stay as they are.
    """
    layer.__class__ = _CLASSES.get(type(layer), type(layer))


def trainable_names(layer: keras.layers.Layer) -> list[str]:
    """Return the names of a layer's own weights, without those of sublayers, that are trained."""
    return [weight.name for weight in own_weights(layer) if weight.trainable]


def train_only(layer: keras.layers.Layer, names: list[str]) -> None:
    """Freeze a layer's own weights except those with the given names."""
    for weight in own_weights(layer):
        weight.trainable = weight.name in names


class _SeparateAdapters:
    """A mixin of a Keras layer that saves weights and adapters apart."""

    trainable_on_build: list[str] | None = None  # from a config, until the layer is built

    def build(self: Any, input_shape: Any = None) -> None:
        alpha = self.lora_alpha
        super().build(input_shape)  # type: ignore[misc]
        self.lora_alpha = alpha  # Keras builds the adapters of a config with the default
        if self.trainable_on_build is not None:
            train_only(self, self.trainable_on_build)

    def get_config(self: Any) -> JSON:
        names = trainable_names(self) if self.built else self.trainable_on_build
        return {**super().get_config(), "trainable_weights": names}  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: JSON) -> Any:
        config = dict(config)
        names = config.pop("trainable_weights", None)
        layer = super().from_config(config)  # type: ignore[misc]
        layer.trainable_on_build = names
        return layer

    def save_own_variables(self: Any, store: Any) -> None:
        if not saves_adapters(self):
            super().save_own_variables(store)  # type: ignore[misc]
            return
        self.lora_enabled = False  # Keras then saves the weights without the adapters
        try:
            super().save_own_variables(store)  # type: ignore[misc]
        finally:
            self.lora_enabled = True
        for key in PARTS:
            store[key] = adapter_part(self, key)

    def load_own_variables(self: Any, store: Any) -> None:
        if "lora_a" in store.keys():  # noqa: SIM118 (a store is not iterable)
            super().load_own_variables(store)  # type: ignore[misc]
            for key in PARTS:
                adapter_part(self, key).assign(store[key])
            return
        # Weights without adapters: Keras would set A to zero, too, and neither would be trained.
        factor = ops.convert_to_numpy(adapter_part(self, "lora_a"))
        super().load_own_variables(store)  # type: ignore[misc]
        adapter_part(self, "lora_a").assign(factor)


@keras.saving.register_keras_serializable("keras_llm")
class DoraDense(_SeparateAdapters, keras.layers.Dense):
    """A `Dense` layer with a DoRA adapter.

    `kernel = magnitude V / |V|`, with `V = W + (alpha / rank) A B` and |V| the column norms. As in
    the paper, |V| is a constant in the backward pass.

    `add_magnitude` turns a built `Dense` layer into this class. All code that reads `kernel` then
    sees the adapted kernel, including Keras when it saves merged kernels.

    Reference:
        Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", eq. 5 and section 4.3.
    """

    @property
    def kernel(self) -> Tensor:
        kernel = super().kernel
        if not self.lora_enabled:
            return kernel
        v = ops.cast(kernel, "float32")
        return ops.cast(v * (self.magnitude / ops.stop_gradient(_lengths(v))), self.compute_dtype)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Add the factors and the magnitude of a layer that Keras builds from a config."""
        super().enable_lora(*args, **kwargs)
        add_magnitude(self, "ones")

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if saves_adapters(self):
            store["lora_magnitude"] = self.magnitude

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        if "lora_magnitude" in store.keys():  # noqa: SIM118 (a store is not iterable)
            self.magnitude.assign(store["lora_magnitude"])
        else:
            self.magnitude.assign(_lengths(ops.cast(super().kernel, "float32")))


def _with_separate_adapters(base):
    """Return a subclass of the same name: Keras uses it in the paths of files of weights."""
    register = keras.saving.register_keras_serializable("keras_llm", f"Adapted{base.__name__}")
    return register(type(base.__name__, (_SeparateAdapters, base), {}))


DoraDense.__name__ = keras.layers.Dense.__name__  # for the same reason
_CLASSES: dict[type, type] = {
    base: _with_separate_adapters(base)
    for base in (
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.Embedding,
        keras.layers.ReversibleEmbedding,
    )
}


def add_magnitude(layer: keras.layers.Dense, magnitude: Tensor | str | None = None) -> None:
    """Turn a `Dense` layer that has adapters into a `DoraDense`.

    Args:
        layer: a built `keras.layers.Dense` with adapters.
        magnitude: float array (O,), or the name of an initializer. Defaults to the norms of the
            kernel's columns, which leaves the layer's output unchanged.
    """
    if magnitude is None:
        magnitude = ops.convert_to_numpy(_lengths(ops.cast(layer.kernel, "float32")))
    with adding_weights(layer):
        layer.magnitude = layer.add_weight(
            name="lora_magnitude",
            shape=(layer.units,),
            dtype="float32",
            initializer=magnitude
            if isinstance(magnitude, str)
            else lambda shape, dtype: ops.convert_to_tensor(magnitude, dtype),
        )
    layer.__class__ = DoraDense


def _lengths(kernel: Tensor) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(kernel), axis=0))
