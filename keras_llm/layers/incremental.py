"""Run layers on new tokens with a cache: layers of this library, of Keras and of one's own.

A layer that mixes positions has two methods:

- `empty_cache(batch_size, length)` returns a tensor, or a nested structure of tensors, with B rows,
  for up to `length` tokens.
- `call(..., cache, cache_update_index, positions)` returns the pair of its outputs for the new
  tokens and the updated cache. `positions` is an int tensor (T,) or (B, T), and
  `cache_update_index` the position of each row's first new token, int (B,) or a scalar. If `call`
  also has an argument `padding_mask`, that is a bool tensor (B, T), True = a real token, or None if
  all are; tokens that are not real come last and must not change a state.

A layer that needs only the positions of its inputs takes `positions` in `call`. Other layers need
nothing. Layers of Keras and KerasHub that mix positions have a `Handler` here.
"""

import abc
import dataclasses
import inspect
from typing import Any, ClassVar

import keras
from keras import ops, tree

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.layers import masks
from keras_llm.layers.attention import MultiHeadAttention, attention
from keras_llm.layers.cache import empty_cache, first_slots, slot_mask, update_cache
from keras_llm.layers.relative import RelativePositionBias
from keras_llm.layers.transformer import TransformerDecoder, TransformerEncoder
from keras_llm.types import Tensor

UNROLLED = 16  # tokens; runtimes on device have no loops


@dataclasses.dataclass
class Step:
    """The new tokens of a cached step, and what the layers share.

    Attributes:
        positions: int tensor (T,) or (B, T).
        index: int tensor, scalar or (B,), the slot of each row's first token; or the int 0.
        attention_mask: bool tensor (B, T, S), True = may attend; None is the causal mask.
        padding_mask: bool tensor (B, T), True = a real token, real tokens first; None if all are.
        num_slots: int or int scalar tensor. S of a full cache; None if there is no full cache.
    """

    positions: Tensor
    index: Any
    attention_mask: Tensor | None = None
    padding_mask: Tensor | None = None
    num_slots: Any = None

    def __post_init__(self) -> None:
        self.is_causal = self.attention_mask is None
        self.slots = None
        if self.num_slots is not None:
            self.slots = ops.arange(self.num_slots)
            if self.attention_mask is None:
                self.attention_mask = masks.causal_mask(self.positions, self.slots)
            else:
                self.slots = self.slots[: self.attention_mask.shape[-1]]


class Handler(abc.ABC):
    """How layers of some classes run in a cached step.

    The methods take the layer and its call arguments, a dict by name. Before a step, these are
    symbolic tensors.
    """

    group: ClassVar[str] = ""
    """What its cache holds; calls of the same group are numbered together."""

    def entries(
        self, layer: Any, arguments: dict[str, Any], batch_size: Any, length: Any, rings: bool
    ) -> dict[str, Tensor]:
        """Return the empty cache entries by name.

        Args:
            layer: the layer.
            arguments: its symbolic arguments.
            batch_size: int or int scalar tensor. B.
            length: int or int scalar tensor. S.
            rings: bool. Whether layers with a sliding window keep only the tokens within it.

        Raises:
            InputError: if the layer cannot be run token by token as it is called.
        """
        return {}

    def source(self, layer: Any, arguments: dict[str, Any]) -> dict[str, Tensor]:
        """Return the entries that depend only on the source of an encoder-decoder, by name."""
        return {}

    @abc.abstractmethod
    def call(
        self, layer: Any, arguments: dict[str, Any], cache: dict[str, Tensor], step: Step
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run the layer on new tokens; return its outputs and the changed entries of the cache."""


class _Attention(Handler):
    """`layers.MultiHeadAttention`."""

    group = "keys and values"

    def entries(self, layer, arguments, batch_size, length, rings):
        if _is_cross(arguments):
            return {}
        _check_causal(layer, arguments)
        slots = length
        if rings and self._has_ring(layer, arguments):
            slots = _ring_slots(layer, length)
        return _pair(layer, batch_size, slots, layer.num_key_value_heads, layer.head_dim)

    @staticmethod
    def _has_ring(layer, arguments):
        return layer.sliding_window is not None and arguments.get("attention_bias") is None

    def source(self, layer, arguments):
        if not _is_cross(arguments):
            return {}
        keys, values = layer.project_keys_and_values(arguments["value"])
        return {"cross_k": keys, "cross_v": values}

    def call(self, layer, arguments, cache, step):
        arguments = {**arguments, "positions": step.positions}
        if "cross_k" in cache:
            arguments |= {"value": None, "cache": (cache["cross_k"], cache["cross_v"])}
            output, *_ = layer(**arguments)
            return output, {}
        arguments.pop("value", None)
        ring = step.is_causal and self._has_ring(layer, arguments)
        output, (keys, values) = layer(
            **{
                **arguments,
                "cache": (cache["k"], cache["v"]),
                "cache_update_index": step.index,
                "use_causal_mask": ring,
                "attention_mask": None if ring else step.attention_mask,
                "padding_mask": step.padding_mask if ring else arguments.get("padding_mask"),
            }
        )
        return output, {"k": keys, "v": values}


class _Decoder(Handler):
    """`layers.TransformerDecoder`."""

    group = "keys and values"

    def entries(self, layer, arguments, batch_size, length, rings):
        if not arguments.get("use_causal_mask", True):
            _check_causal(layer, {"attention_mask": arguments.get("decoder_attention_mask")})
        slots = length
        if rings and self._has_ring(layer, arguments):
            slots = _ring_slots(layer, length)
        attended = layer.self_attention
        return _pair(layer, batch_size, slots, attended.num_key_value_heads, attended.head_dim)

    @staticmethod
    def _has_ring(layer, arguments):
        # A shared bias is indexed by the slots of a full cache.
        return layer.sliding_window is not None and arguments.get("attention_bias") is None

    def source(self, layer, arguments):
        if arguments.get("encoder_sequence") is None:
            return {}
        keys, values = layer.cross_attention.project_keys_and_values(arguments["encoder_sequence"])
        return {"cross_k": keys, "cross_v": values}

    def call(self, layer, arguments, cache, step):
        arguments = {
            **arguments,
            "self_attention_cache": (cache["k"], cache["v"]),
            "self_attention_cache_update_index": step.index,
            "positions": step.positions,
            "use_causal_mask": False,
            "decoder_attention_mask": step.attention_mask,
        }
        if step.is_causal and self._has_ring(layer, arguments):
            arguments |= {
                "use_causal_mask": True,
                "decoder_attention_mask": None,
                "decoder_padding_mask": step.padding_mask,
            }
        if "cross_k" in cache:
            arguments["encoder_sequence"] = None
            arguments["cross_attention_cache"] = (cache["cross_k"], cache["cross_v"])
        output, (keys, values), *_ = layer(**arguments)
        return output, {"k": keys, "v": values}


class _SharedBias(Handler):
    """`layers.RelativePositionBias`, whose scores are those of the new tokens for all slots."""

    def call(self, layer, arguments, cache, step):
        query_positions, slots = (
            p if len(p.shape) == 2 else ops.expand_dims(p, 0) for p in (step.positions, step.slots)
        )
        pairs = ops.expand_dims(query_positions, -1) + ops.expand_dims(slots, -2)
        scores = ops.expand_dims(ops.cast(ops.zeros_like(pairs), "float32"), 1)
        return layer(scores, query_positions=query_positions, key_positions=slots), {}


class _Bidirectional(Handler):
    """Layers whose outputs depend on later positions."""

    group = "none"

    def entries(self, layer, arguments, batch_size, length, rings):
        raise InputError(_later(layer, "it is not a layer of a decoder"))

    def call(self, layer, arguments, cache, step):
        raise InputError(_later(layer, "it is not a layer of a decoder"))


class _KerasAttention(Handler):
    """`keras.layers.MultiHeadAttention` and `GroupQueryAttention`."""

    group = "keys and values"

    def entries(self, layer, arguments, batch_size, length, rings):
        if _is_cross(arguments):
            return {}
        _check_causal(layer, arguments)
        heads = keras_internals.attention_heads(layer)
        return {
            kind: ops.zeros((batch_size, heads.num_key_value_heads, length, size), dtype)
            for kind, size, dtype in (
                ("k", heads.key_size, layer.compute_dtype),
                ("v", heads.value_size, layer.compute_dtype),
            )
        }

    def source(self, layer, arguments):
        if not _is_cross(arguments):
            return {}
        value, key = arguments["value"], arguments.get("key")
        keys, values = self._project(layer, value if key is None else key, value)
        return {"cross_k": keys, "cross_v": values}

    @staticmethod
    def _project(layer, key, value):
        heads = keras_internals.attention_heads(layer)
        return tuple(ops.transpose(x, (0, 2, 1, 3)) for x in (heads.key(key), heads.value(value)))

    def call(self, layer, arguments, cache, step):
        heads = keras_internals.attention_heads(layer)
        query, changed = arguments["query"], {}
        if "cross_k" in cache:
            keys, values = cache["cross_k"], cache["cross_v"]
            mask = arguments.get("attention_mask")
            padding = arguments.get("value_mask")
            mask = masks.merge(mask, masks.padding_mask(padding))
        else:
            key = arguments.get("key")
            new = self._project(layer, query if key is None else key, arguments["value"])
            full = tuple(
                update_cache(cache[kind], x, step.index) for kind, x in zip("kv", new, strict=True)
            )
            changed = dict(zip("kv", full, strict=True))
            width = step.attention_mask.shape[-1]
            keys, values = (first_slots(x, width) for x in full)
            mask = step.attention_mask
            hidden = keras_internals.implicit_mask(query)
            if hidden is not None:
                visible = slot_mask(hidden, full, new, step.index, width)
                mask = masks.merge(mask, masks.padding_mask(visible))
            if heads.sliding_window is not None:
                band = masks.band_mask(step.positions, step.slots, heads.sliding_window)
                mask = masks.merge(mask, band)
        output = attention(
            heads.query(query),
            keys,
            values,
            mask=None if mask is None else ops.expand_dims(mask, -3),
            scale=heads.scale,
        )
        if heads.gate is not None:
            output = output * heads.gate(query)
        return heads.output(output), changed


class _KerasHubDecoder(_KerasAttention):
    """`keras_hub.layers.TransformerDecoder`."""

    def entries(self, layer, arguments, batch_size, length, rings):
        inner = keras_internals.keras_hub_decoder(layer)
        arguments = {"query": 0, "value": 0, "use_causal_mask": True}
        return super().entries(inner.self_attention, arguments, batch_size, length, rings)

    def source(self, layer, arguments):
        if arguments.get("encoder_sequence") is None:
            return {}
        source, inner = arguments["encoder_sequence"], keras_internals.keras_hub_decoder(layer)
        keys, values = self._project(inner.cross_attention, source, source)
        return {"cross_k": keys, "cross_v": values}

    def call(self, layer, arguments, cache, step):
        inner, changed = keras_internals.keras_hub_decoder(layer), {}

        def self_attention(h):
            nonlocal changed
            own = {kind: cache[kind] for kind in "kv"}
            output, changed = super(_KerasHubDecoder, self).call(
                inner.self_attention, {"query": h, "value": h}, own, step
            )
            return output

        def cross_attention(h):
            own = {name: cache[name] for name in ("cross_k", "cross_v")}
            mask = masks.merge(
                arguments.get("encoder_attention_mask"),
                masks.padding_mask(arguments.get("encoder_padding_mask")),
            )
            arguments_of_layer = {"query": h, "attention_mask": mask}
            output, _ = super(_KerasHubDecoder, self).call(
                inner.cross_attention, arguments_of_layer, own, step
            )
            return output

        parts = [(self_attention, inner.self_attention_norm)]
        if "cross_k" in cache:
            parts.append((cross_attention, inner.cross_attention_norm))
        parts.append((inner.feed_forward, inner.feed_forward_norm))
        x = arguments["decoder_sequence"]
        for part, norm in parts:
            x = x + part(norm(x)) if layer.normalize_first else norm(x + part(x))
        return x, changed


class _Convolution(Handler):
    """Causal one-dimensional convolutions. The cache holds the inputs that the next one reads."""

    group = "inputs"

    def entries(self, layer, arguments, batch_size, length, rings):
        if layer.padding != "causal":
            raise InputError(_later(layer, 'pass `padding="causal"`'))
        if layer.strides != (1,) or layer.data_format != "channels_last":
            raise InputError(
                f"layer {layer.name!r}: a convolution must have strides of 1 and "
                '`data_format="channels_last"` to run token by token.'
            )
        shape = (batch_size, self._held(layer), arguments["inputs"].shape[-1])
        return {"inputs": ops.zeros(shape, layer.compute_dtype)}

    @staticmethod
    def _held(layer):
        return (layer.kernel_size[0] - 1) * layer.dilation_rate[0]

    @staticmethod
    def _convolve(layer, inputs, held):
        """Return the outputs for all but the first `held` inputs."""
        is_plain = isinstance(layer, keras.layers.Conv1D) and layer.groups == 1
        if not is_plain:
            return layer(inputs)[:, held:]
        # A matrix product for each weight along time, which all runtimes support and quantize.
        length = ops.shape(inputs)[1] - held
        with keras_internals.autocast(layer.compute_dtype):
            kernel = ops.convert_to_tensor(layer.kernel)
            bias = None if layer.bias is None else ops.convert_to_tensor(layer.bias)
        outputs = sum(
            ops.matmul(inputs[:, i * layer.dilation_rate[0] :][:, :length], kernel[i])
            for i in range(layer.kernel_size[0])
        )
        outputs = outputs if bias is None else outputs + bias
        return outputs if layer.activation is None else layer.activation(outputs)

    def call(self, layer, arguments, cache, step):
        held, new = self._held(layer), arguments["inputs"]
        if not held:
            return layer(new), {}
        inputs = ops.concatenate([cache["inputs"], ops.cast(new, cache["inputs"].dtype)], axis=1)
        outputs = self._convolve(layer, inputs, held)
        if new.shape[1] is not None:  # TensorFlow forgets the length of dilated convolutions
            outputs = ops.reshape(outputs, (-1, new.shape[1], outputs.shape[-1]))
        if step.padding_mask is None:
            return outputs, {"inputs": inputs[:, -held:]}
        count = ops.sum(ops.cast(step.padding_mask, "int32"), axis=1, keepdims=True)
        places = count + ops.expand_dims(ops.arange(held, dtype="int32"), 0)
        kept = ops.take_along_axis(inputs, ops.expand_dims(places, -1), axis=1)
        return outputs, {"inputs": kept}


class _Recurrent(Handler):
    """`keras.layers.RNN`, `GRU`, `LSTM` and `SimpleRNN`. The cache holds their states."""

    group = "states"

    def entries(self, layer, arguments, batch_size, length, rings):
        if not layer.return_sequences or layer.go_backwards or layer.stateful:
            raise InputError(
                f"layer {layer.name!r}: a recurrent layer must have `return_sequences=True`, and "
                "neither `go_backwards` nor `stateful`, to run token by token."
            )
        states = tree.flatten(layer.get_initial_state(batch_size))
        return {
            f"state_{i}": ops.cast(state, layer.compute_dtype) for i, state in enumerate(states)
        }

    def call(self, layer, arguments, cache, step):
        inputs = arguments["sequence" if "sequence" in arguments else "sequences"]
        states = list(cache.values())
        first = arguments.get("initial_state")
        if first is not None:
            begins = ops.reshape(ops.cast(step.positions, "int32"), (-1, inputs.shape[1]))[:, :1]
            states = [
                ops.where(begins == 0, ops.cast(own, state.dtype), state)
                for own, state in zip(tree.flatten(first), states, strict=True)
            ]
        mask = step.padding_mask
        if inputs.shape[1] is not None and inputs.shape[1] <= UNROLLED:
            outputs = []
            for i in range(inputs.shape[1]):
                output, new = layer.cell(inputs[:, i], states)
                if mask is not None:
                    pairs = zip(tree.flatten(new), states, strict=True)
                    new = [ops.where(mask[:, i : i + 1], after, before) for after, before in pairs]
                states = tree.flatten(new)
                outputs.append(output)
            outputs = ops.stack(outputs, axis=1)
        else:
            _, outputs, states = keras_internals.run_recurrence(layer, inputs, states, mask)
        states = tree.flatten(states)
        changed = dict(zip(cache, states, strict=True))
        return ((outputs, *states) if layer.return_state else outputs), changed


class _Own(Handler):
    """Layers with a method `empty_cache`; see the beginning of this file."""

    group = "own"

    def entries(self, layer, arguments, batch_size, length, rings):
        flat = tree.flatten(layer.empty_cache(batch_size, length))
        return {f"cache_{i}": entry for i, entry in enumerate(flat)}

    def call(self, layer, arguments, cache, step):
        structure = keras_internals.structure_of(lambda: layer.empty_cache(1, 1))
        shared = {
            "cache": tree.pack_sequence_as(structure, list(cache.values())),
            "cache_update_index": step.index,
            "positions": step.positions,
            "padding_mask": step.padding_mask,
        }
        accepted = inspect.signature(layer.call).parameters
        output, updated = layer(
            **{**arguments, **{name: shared[name] for name in shared if name in accepted}}
        )
        return output, dict(zip(cache, tree.flatten(updated), strict=True))


class _Positions(Handler):
    """Layers that do not mix positions, but take `positions`."""

    def call(self, layer, arguments, cache, step):
        return layer(**{**arguments, "positions": step.positions}), {}


_HANDLERS: tuple[tuple[tuple[type, ...], Handler], ...] = (
    ((TransformerDecoder,), _Decoder()),
    ((MultiHeadAttention,), _Attention()),
    ((RelativePositionBias,), _SharedBias()),
    ((TransformerEncoder, keras.layers.Bidirectional), _Bidirectional()),
    ((keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention), _KerasAttention()),
    ((keras.layers.Conv1D, keras.layers.SeparableConv1D), _Convolution()),
    ((keras.layers.RNN,), _Recurrent()),
)
_KERAS_HUB_DECODER, _OWN, _POSITIONS = _KerasHubDecoder(), _Own(), _Positions()


def handler_of(operation: Any) -> Handler | None:
    """Return the handler of a layer, or None for what runs on new tokens as on any others."""
    if not isinstance(operation, keras.layers.Layer):
        return None
    for classes, handler in _HANDLERS:
        if isinstance(operation, classes):
            return handler
    if keras_internals.is_keras_hub_decoder(operation):
        return _KERAS_HUB_DECODER
    if hasattr(operation, "empty_cache"):
        return _OWN
    return _POSITIONS if "positions" in _parameters(operation) else None


def depends_on_positions(operation: Any) -> bool:
    """Return whether a layer needs a cache or the positions of its inputs."""
    return handler_of(operation) is not None


def bound(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the call arguments of a layer by name."""
    arguments = dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    return arguments


def _parameters(layer):
    return inspect.signature(layer.call).parameters


def _is_cross(arguments):
    value = arguments.get("value")
    return value is not None and value is not arguments["query"]


def _check_causal(layer, arguments):
    if not arguments.get("use_causal_mask") and arguments.get("attention_mask") is None:
        raise InputError(_later(layer, "call it with `use_causal_mask=True`"))


def _later(layer, remedy):
    return (
        f"layer {layer.name!r} ({type(layer).__name__}) depends on later positions, so that text "
        f"cannot be generated token by token: {remedy}."
    )


def _ring_slots(layer, length):
    ring = layer.sliding_window + layer.num_sink_tokens
    return min(length, ring) if isinstance(length, int) else ops.minimum(length, ring)


def _pair(layer, batch_size, slots, num_heads, size):
    pair = empty_cache(batch_size, slots, num_heads, size, dtype=layer.compute_dtype)
    return dict(zip("kv", pair, strict=True))
