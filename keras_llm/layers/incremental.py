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

import inspect
from typing import Any

import keras
from keras import ops, tree

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.layers import masks
from keras_llm.layers._handler import (
    IS_CROSS,
    Handler,
    attention_on_rows,
    check_causal,
    is_cross,
    later,
    source_mask,
)
from keras_llm.layers._handlers_of_keras import (
    Convolution,
    KerasAttention,
    KerasHubDecoder,
    Recurrent,
)
from keras_llm.layers.attention import MultiHeadAttention
from keras_llm.layers.cache import empty_cache
from keras_llm.layers.relative import RelativePositionBias, shared_bias
from keras_llm.layers.transformer import TransformerDecoder, TransformerEncoder


class _Attention(Handler):
    """`layers.MultiHeadAttention`."""

    group = "keys and values"

    def entries(self, layer, arguments, batch_size, length, rings):
        if is_cross(arguments):
            return {}
        check_causal(layer, arguments)
        value = arguments.get("value")
        if value is not None and value is not arguments["query"]:
            raise InputError(
                f"layer {layer.name!r}: `value` must be left out or be `query` to run token by "
                "token; the attention layers of Keras take another one."
            )
        slots = length
        if rings and self._has_ring(layer, arguments):
            slots = _ring_slots(layer, length)
        return _pair(layer, batch_size, slots, layer.num_key_value_heads, layer.head_dim)

    @staticmethod
    def _has_ring(layer, arguments):
        return layer.sliding_window is not None and arguments.get("attention_bias") is None

    def source(self, layer, arguments):
        if not is_cross(arguments):
            return {}
        keys, values = layer.project_keys_and_values(arguments["value"])
        return {"cross_k": keys, "cross_v": values, **source_mask(arguments["value"])}

    def call(self, layer, arguments, cache, step):
        arguments = {**arguments, "positions": step.positions}
        arguments.pop(IS_CROSS, None)
        if "cross_k" in cache:
            arguments |= {"value": None, "cache": (cache["cross_k"], cache["cross_v"])}
            if "cross_mask" in cache:
                padding = masks.merge(arguments.get("padding_mask"), cache["cross_mask"])
                arguments["padding_mask"] = padding
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

    def run_rows(self, layer, arguments, rows):
        if rows.positions is not None and not is_cross(arguments):
            arguments = {**arguments, "positions": rows.positions}
        return attention_on_rows(layer, arguments, rows)


class _Decoder(Handler):
    """`layers.TransformerDecoder`."""

    group = "keys and values"

    def entries(self, layer, arguments, batch_size, length, rings):
        if not arguments.get("use_causal_mask", True):
            check_causal(layer, {"attention_mask": arguments.get("decoder_attention_mask")})
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
        source = arguments["encoder_sequence"]
        keys, values = layer.cross_attention.project_keys_and_values(source)
        return {"cross_k": keys, "cross_v": values, **source_mask(source)}

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
            if "cross_mask" in cache:
                padding = masks.merge(arguments.get("encoder_padding_mask"), cache["cross_mask"])
                arguments["encoder_padding_mask"] = padding
        output, (keys, values), *_ = layer(**arguments)
        return output, {"k": keys, "v": values}

    def run_rows(self, layer, arguments, rows):
        if rows.positions is not None:
            arguments = {**arguments, "positions": rows.positions}
        if rows.attention_mask is not None:
            mask = masks.merge(arguments.get("decoder_attention_mask"), rows.attention_mask)
            arguments = {**arguments, "decoder_attention_mask": mask, "use_causal_mask": False}
        return _block_on_rows(layer, arguments, rows)


class _SharedBias(Handler):
    """`layers.RelativePositionBias`, whose scores are those of the new tokens for all slots."""

    def call(self, layer, arguments, cache, step):
        return shared_bias(layer, step.positions, step.slots), {}

    def run_rows(self, layer, arguments, rows):
        if rows.positions is None:
            return layer(**arguments)
        return shared_bias(layer, rows.positions, rows.positions)


class _Bidirectional(Handler):
    """Layers whose outputs depend on later positions."""

    group = "none"

    def entries(self, layer, arguments, batch_size, length, rings):
        raise InputError(later(layer, "it is not a layer of a decoder"))

    def call(self, layer, arguments, cache, step):
        raise InputError(later(layer, "it is not a layer of a decoder"))


class _Encoder(_Bidirectional):
    """`layers.TransformerEncoder`."""

    def run_rows(self, layer, arguments, rows):
        return _block_on_rows(layer, arguments, rows)


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

    def run_rows(self, layer, arguments, rows):
        own = {} if rows.positions is None else {"positions": rows.positions}
        return layer(**{**arguments, **own})


_HANDLERS: tuple[tuple[tuple[type, ...], Handler], ...] = (
    ((TransformerDecoder,), _Decoder()),
    ((MultiHeadAttention,), _Attention()),
    ((RelativePositionBias,), _SharedBias()),
    ((TransformerEncoder,), _Encoder()),
    ((keras.layers.Bidirectional,), _Bidirectional()),
    ((keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention), KerasAttention()),
    ((keras.layers.Conv1D,), Convolution()),
    ((keras.layers.RNN,), Recurrent()),
)
_KERAS_HUB_DECODER, _OWN, _POSITIONS = KerasHubDecoder(), _Own(), _Positions()


def handler_of(operation: Any) -> Handler | None:
    """Return the handler of a layer, or None for what runs on new tokens as on any others."""
    if not isinstance(operation, keras.layers.Layer):
        return None
    if hasattr(operation, "empty_cache"):
        return _OWN
    for classes, handler in _HANDLERS:
        if isinstance(operation, classes):
            return handler
    if keras_internals.is_keras_hub_decoder(operation):
        return _KERAS_HUB_DECODER
    return _POSITIONS if "positions" in _parameters(operation) else None


def depends_on_positions(operation: Any) -> bool:
    """Return whether a layer needs a cache or the positions of its inputs."""
    return handler_of(operation) is not None


def bound(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the call arguments of a layer by name."""
    arguments = dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    return arguments


def _block_on_rows(layer, arguments, rows):
    returned = arguments.get("return_attention_scores", False)
    outputs = layer(**{**arguments, "return_attention_scores": returned or rows.wants_scores})
    if not (returned or rows.wants_scores):
        return outputs
    output, own, *cross = outputs
    rows.add_scores([own], cross)
    return outputs if returned else output


def _parameters(layer):
    return inspect.signature(layer.call).parameters


def _ring_slots(layer, length):
    ring = layer.sliding_window + layer.num_sink_tokens
    return min(length, ring) if isinstance(length, int) else ops.minimum(length, ring)


def _pair(layer, batch_size, slots, num_heads, size):
    pair = empty_cache(batch_size, slots, num_heads, size, dtype=layer.compute_dtype)
    return dict(zip("kv", pair, strict=True))
