"""Take language models that a user composed from Keras layers."""

from typing import Any

import keras
from keras import ops

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.layers._parts import Shape
from keras_llm.layers.adapters import merged_row
from keras_llm.models import tracing
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.config import ComposedConfig
from keras_llm.models.incremental_check import check_composed
from keras_llm.types import JSON, Tensor

# What Keras writes for values
_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__", "__bytes__")
_DEFAULT_LENGTH = 1024  # tokens, if neither the input nor a position embedding limits the length


class ComposedModel(ConfiguredModel):
    """The base class of models that a user composed, with the layers and weights of that model.

    Attributes:
        config: a `ComposedConfig`.
    """

    config_class = ComposedConfig
    config: ComposedConfig
    _takes_tensor = True  # a single input, rather than a list with it

    def __init__(
        self,
        config: ComposedConfig | JSON,
        model: keras.Model | JSON,
        name: str = "composed",
        **kwargs: Any,
    ) -> None:
        read: ComposedConfig = self.read_config(config)
        if isinstance(model, dict):
            model = deserialized(model)
        is_single = self._takes_tensor and len(model.inputs) == 1
        inputs = model.inputs[0] if is_single else model.inputs
        super().__init__(read, inputs, model.outputs[0], name, None, **kwargs)

    def get_config(self) -> JSON:
        model = keras.Model(self.inputs, self.outputs[0], name=self.name)
        return {
            "config": self.config.to_dict(),
            "model": serialized(model),
            "name": self.name,
            **self.state(),
        }


@keras.saving.register_keras_serializable("keras_llm")
class ComposedLM(ComposedModel):
    """A language model that a user composed, with the layers and weights of that model.

    Its input is token ids (B, T), its output logits (B, T, V). Use `as_causal_lm` to build one.

    Attributes:
        config: a `ComposedConfig`.
    """


def as_causal_lm(
    model: keras.Model,
    max_length: int | None = None,
    incremental: bool = True,
    pad_id: int | None = None,
) -> ConfiguredModel:
    """Return a composed model in the form that tasks and exports take.

    Args:
        model: a functional or `Sequential` `keras.Model` from int token ids (B, T) to float logits
            (B, T, V), or a subclass whose `call` can be traced. A model of this library is
            returned as it is.
        max_length: int > 1. Maximum sequence length. Defaults to the length of the model's input
            or to the smallest `sequence_length` of its layers, otherwise to 1024.
        incremental: bool. Whether new tokens run with a cache. If not, each step runs the whole
            text again, which any causal model can do.
        pad_id: int, the padding of token ids, or None if it is unknown.

    Returns:
        A `keras.Model` with the same layers and weights.

    Raises:
        InputError: if the model has other inputs or outputs, its output for a token depends on
            later tokens, (if `incremental`) a layer gives other outputs with a cache, or a layer
            masks the token 0, which is not the padding; the message names the layer.
    """
    if isinstance(model, ConfiguredModel):
        return model
    functional = _functional(model)
    check_mask_zero(functional, pad_id)
    (token_ids,), (logits,) = functional.inputs, functional.outputs
    length = token_ids.shape[1]
    if length is not None:
        is_free = runs_at_any_length(functional)
        functional = (_with_any_length if is_free else _with_padding)(functional)
    config = ComposedConfig(
        vocabulary_size=logits.shape[-1],
        max_length=checked_length(functional, length, max_length),
        incremental=incremental,
    )
    composed = ComposedLM(config, functional, name=model.name)
    check_composed(composed, pad_id)
    return composed


def check_mask_zero(functional: keras.Model, pad_id: int | None) -> None:
    """Raise InputError if a layer masks the token 0, and that is not the padding."""
    for layer in keras_internals.flatten_layers(functional):
        if getattr(layer, "mask_zero", False) and pad_id not in (0, None):
            raise InputError(
                f"layer {layer.name!r} masks the token 0 (`mask_zero=True`), but the tokenizer "
                f"pads with {pad_id}: 0 is a token like others."
            )


def _functional(model):
    """Return a functional model with one input (B, T) and one output (B, T, V)."""
    model = functional_of(model)
    inputs, outputs = ([x.shape for x in side] for side in (model.inputs, model.outputs))
    if [len(shape) for shape in (*inputs, *outputs)] != [2, 3] or outputs[0][-1] is None:
        raise InputError(
            f"`model` must map token ids (B, T) to logits (B, T, V); it maps {inputs} to {outputs}."
        )
    return model


def functional_of(model: Any, names: tuple[str, ...] = ("token_ids",)) -> keras.Model:
    """Return a model as a functional one; the `call` of a subclass is traced.

    Args:
        model: a `keras.Model`.
        names: the names of its inputs, int (B, T), in the order of the result's. The `call` of a
            subclass takes a list if there are several.

    Raises:
        InputError: if it is no model, cannot be traced, or is a dict of inputs with other names.
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"`model` must be a `keras.Model`, got {type(model).__name__}.")
    functional = keras_internals.functional_of(model)
    if functional is None:
        return _traced(model, names)
    keys = keras_internals.input_names(functional)
    if keys is None or len(keys) == 1:
        return functional
    if not set(keys) <= set(names):
        raise InputError(f"`model` must have the inputs {', '.join(names)}; it has {keys}.")
    inputs = dict(zip(keys, functional.inputs, strict=True))
    return keras.Model([inputs[name] for name in names if name in inputs], functional.outputs)


def _traced(model, names):
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in names]
    argument = inputs if len(inputs) > 1 else inputs[0]
    kind = type(model).__name__
    try:
        outputs, same = tracing.trace(model, lambda: model.call(argument))
        functional = keras.Model(argument, outputs)
        is_alike = tracing.trains_alike(model, lambda **own: model.call(argument, **own))
    except Exception as error:  # the code of `call` may raise anything on a symbolic tensor
        raise InputError(
            f"the `call` of {kind} cannot be traced: {error} Compose a functional model, with "
            "`keras.Input`."
        ) from error
    if not same:
        raise InputError(
            f"the `call` of {kind} computes something from weights alone, such as the transpose of "
            "an embedding; put it into a layer."
        )
    if not is_alike:
        raise InputError(
            f"the `call` of {kind} computes something else with `training=True`, or calls a layer "
            "with `training=False` then, which a traced model does not do; put it into a layer."
        )
    tracked = {id(variable) for variable in functional.variables}
    if lost := [variable.path for variable in model.variables if id(variable) not in tracked]:
        raise InputError(
            f"the weight {lost[0]} of {kind} belongs to none of its layers; put it into a layer."
        )
    return functional


def runs_at_any_length(functional: keras.Model) -> bool:
    """Return whether a model with an input of fixed length reads shorter ones, too."""
    sources = functional.inputs
    try:
        symbolic = [keras.Input((None,), dtype=x.dtype) for x in sources]
        keras_internals.run_graph(functional, symbolic)
        for length in (1, min(3, sources[0].shape[1])):
            keras_internals.run_graph(functional, [ops.ones((1, length), x.dtype) for x in sources])
    except Exception:  # layers raise anything for another length
        return False
    return True


def _with_any_length(functional):
    """Return the same model for inputs of any length."""
    token_ids = keras.Input((None,), dtype=functional.inputs[0].dtype, name="token_ids")
    return keras.Model(token_ids, keras_internals.run_graph(functional, [token_ids])[0])


def _with_padding(functional):
    """Return the same model for inputs of at most its length, which are padded on the right."""
    (source,), length = functional.inputs, functional.inputs[0].shape[1]
    token_ids = keras.Input((None,), dtype=source.dtype, name="token_ids")
    logits = functional(PadTo(length)(token_ids))
    return keras.Model(token_ids, LengthOf()(logits, token_ids))


@keras.saving.register_keras_serializable("keras_llm")
class PadTo(keras.layers.Layer):
    """Pad or cut token ids (B, T) to (B, length)."""

    def __init__(self, length: int, pad_id: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.pad_id = length, pad_id

    def call(self, token_ids: Tensor) -> Tensor:
        token_ids = token_ids[:, : self.length]
        missing = self.length - ops.shape(token_ids)[1]
        padded = ops.pad(token_ids, ((0, 0), (0, missing)), constant_values=self.pad_id)
        return ops.reshape(padded, (-1, self.length))

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.length)

    def get_config(self) -> JSON:
        return {**super().get_config(), "length": self.length, "pad_id": self.pad_id}


@keras.saving.register_keras_serializable("keras_llm")
class LengthOf(keras.layers.Layer):
    """Cut logits (B, S, V) to the length of token ids (B, T)."""

    def call(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        return logits[:, : ops.shape(token_ids)[1]]

    def compute_output_shape(self, logits_shape: Shape, token_ids_shape: Shape) -> Shape:
        return (logits_shape[0], token_ids_shape[1], logits_shape[2])


def checked_length(functional: keras.Model, length: int | None, wanted: int | None) -> int:
    """Return the maximum length of a composed model.

    Args:
        functional: the model.
        length: the fixed length of its input, or None.
        wanted: `max_length`, or None for the length of the input, otherwise the smallest
            `sequence_length` of the layers, otherwise 1024.

    Raises:
        InputError: if `wanted` is more than the model reads.
    """
    layers = keras_internals.flatten_layers(functional)
    lengths = [getattr(layer, "sequence_length", None) for layer in layers]
    longest = length or min((n for n in lengths if isinstance(n, int)), default=None)
    if wanted is None:
        return _DEFAULT_LENGTH if longest is None else longest
    if not isinstance(wanted, int) or wanted < 2:
        raise InputError(f"`max_length` must be an int > 1, got {wanted!r}.")
    if longest is not None and wanted > longest:
        raise InputError(
            f"`max_length` must be at most {longest}, the length of the model's "
            f"{'input' if length else 'position embedding'}, got {wanted}."
        )
    return wanted


def require_same(
    whole: Tensor, padded: Tensor, layers: list[keras.layers.Layer], message: str
) -> None:
    """Raise InputError if the outputs for padded inputs differ by more than rounding.

    Args:
        whole, padded: the outputs without and with padding.
        layers: the layers of the model.
        message: str in which `{error}` is replaced by the difference.
    """
    whole, padded = (ops.convert_to_numpy(ops.cast(x, "float32")) for x in (whole, padded))
    error = float(abs(whole - padded).max())
    is_exact = all(layer.compute_dtype in ("float32", "float64") for layer in layers)
    if error > (1e-3 if is_exact else 0.05) * float(abs(whole).max()):
        raise InputError(message.format(error=f"{error:.2g}"))


def serialized(model: keras.Model) -> JSON:
    """Return the layers of a functional model, as plain JSON types."""
    row = merged_row(keras.saving.serialize_keras_object(model))
    shared = list(_shared_sublayers(model))
    paths = [layer.path for layer in keras_internals.flatten_layers(model)]
    return {**row, "shared": shared, "paths": paths}


def deserialized(row: JSON) -> keras.Model:
    """Rebuild a model from the output of `serialized`; InputError if that fails.

    Only classes of Keras and KerasHub and registered ones are built.
    """
    _check_classes(row)
    row = dict(row)
    shared, paths = row.pop("shared", []), row.pop("paths", None)
    try:
        model = keras.saving.deserialize_keras_object(row, safe_mode=True)
        for name, attributes, sublayer in shared:
            owner = model.get_layer(name)
            for attribute in attributes[:-1]:
                owner = getattr(owner, attribute)
            keras_internals.replace_sublayer(owner, attributes[-1], model.get_layer(sublayer))
        layers = keras_internals.flatten_layers(model)
        for layer, path in zip(layers, paths or [], strict=paths is not None):
            if path:
                keras_internals.set_path(layer, path)
    except Exception as error:  # the constructors of layers raise anything
        raise InputError(f"the model cannot be built: {error}") from error
    return model


def with_dtype(row: Any, dtype: str) -> Any:
    """Replace the dtype policies of all layers in the output of `ComposedLM.get_config`."""
    if isinstance(row, list):
        return [with_dtype(item, dtype) for item in row]
    if not isinstance(row, dict):
        return row
    if row.get("class_name") == "DTypePolicy":
        return {**row, "config": {"name": dtype}}
    return {name: with_dtype(item, dtype) for name, item in row.items()}


def _shared_sublayers(model):
    """Find the layers of a graph that are also sublayers of others, such as a tied embedding.

    Keras would rebuild them apart.

    Yields:
        The name of the other layer, the attributes that lead to the sublayer, and its name.
    """
    names = {id(layer): layer.name for layer in model.layers}
    for layer in model.layers:
        if not isinstance(layer, keras.Model):
            for attributes, sublayer in _sublayers(layer, {id(layer)}):
                if id(sublayer) in names:
                    yield layer.name, list(attributes), names[id(sublayer)]


def _sublayers(layer, seen):
    for attribute, value in vars(layer).items():
        if isinstance(value, keras.layers.Layer) and id(value) not in seen:
            seen.add(id(value))
            yield (attribute,), value
            for attributes, sublayer in _sublayers(value, seen):
                yield (attribute, *attributes), sublayer


def _check_classes(row):
    """Raise InputError for classes that are neither known nor registered."""
    if isinstance(row, list):
        for item in row:
            _check_classes(item)
    if not isinstance(row, dict):
        return
    if "class_name" in row:
        name, module = row["class_name"], row.get("module") or ""
        registered = row.get("registered_name") or ""
        known = str(module).partition(".")[0] in ("keras", "keras_hub", "builtins")
        known = known or name in _VALUES
        if name in ("Lambda", "__lambda__") or (module == "builtins" and name == "function"):
            raise InputError("the model has a `Lambda` layer, whose code is not loaded.")
        if not known and keras.saving.get_registered_object(str(registered)) is None:
            raise InputError(
                f"the model has a layer of class {registered or name}, which is not registered: "
                "decorate the class with `keras.saving.register_keras_serializable()` and import "
                "it before loading the model."
            )
    for item in row.values():
        _check_classes(item)
