"""Divide the graph of a language model for steps with a cache, token by token."""

import dataclasses
import math
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.layers import incremental
from keras_llm.layers._handler import Handler, Step
from keras_llm.layers.cache import update_cache
from keras_llm.models.graph import Call, Graph, Value, graph_of, split_head
from keras_llm.types import Tensor

_LONG = 1 << 20  # tokens, more than any window
_PADDING = "encoder_padding_mask"
_TEXT = "cached_token_ids"
_CROSS = ("cross_k", "cross_v", "cross_mask")


@dataclasses.dataclass(frozen=True, eq=False)
class Cached:
    """A call that runs through a handler.

    Attributes:
        graph: the graph of the call.
        call: the call.
        handler: the handler of its layer.
        index: the number that the names of its cache entries end with.
        symbolic: its arguments by name, as symbolic tensors.
    """

    graph: Graph
    call: Call
    handler: Handler
    index: int
    symbolic: dict[str, Any]

    def arguments(self, values: dict[int, Any]) -> dict[str, Any]:
        """Return the arguments by name, None for what is not in `values`."""
        return self.graph.arguments(self.call, values)

    def entries(self, batch_size: Any, length: Any, rings: bool) -> dict[str, Tensor]:
        """Return its empty cache entries, whose names end with the number of the call."""
        layer = self.call.operation
        return self.numbered(self.handler.entries(layer, self.symbolic, batch_size, length, rings))

    def source(self, values: dict[int, Any]) -> dict[str, Tensor]:
        """Return its cache entries that depend only on the source."""
        return self.numbered(self.handler.source(self.call.operation, self.arguments(values)))

    def numbered(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the number of the call to the names of entries."""
        return {f"{name}_{self.index}": entry for name, entry in entries.items()}


class Decoder:
    """The graph of a language model, divided for steps with a cache.

    A model computes logits (B, T, V) from token ids (B, T); an encoder-decoder from the token ids
    of a source (B, S) and those of the decoder.

    Attributes:
        source_calls: the calls that depend only on the source.
        calls: the calls from decoder token ids to hidden states, those with a handler as `Cached`.
        head: the calls from hidden states to logits.
        hidden_index: the index of the hidden states (B, T, D) in the graph.
        hidden: a symbolic tensor, the hidden states.
        specs: dict of symbolic tensors, the cache entries of one row.
        slot_axes: dict from the name of an entry with a slot for every position to that axis.
        full_axes: the same for a cache without rings.
    """

    def __init__(self, model: keras.Model) -> None:
        self.graph = graph_of(model)
        inputs, outputs = (
            [self.graph.specs[index].shape for index in side]
            for side in (self.graph.inputs, self.graph.outputs)
        )
        ranks = [len(shape) for shape in (*inputs, *outputs)]
        if ranks not in ([2, 3], [2, 2, 3]) or outputs[0][-1] is None:
            raise InputError(
                "`model` must map token ids (B, T), or those of an encoder and a decoder, to "
                f"logits (B, T, V); it maps {inputs} to {outputs}."
            )
        *self._sources, self._input = self.graph.inputs
        own = self.graph.depending_on([self._input])
        calls = [call for call in self.graph.calls if own.intersection(call.outputs)]
        self.source_calls = [call for call in self.graph.calls if call not in calls]
        self.hidden_index, self.head = split_head(self.graph, calls)
        self.hidden = self.graph.specs[self.hidden_index]
        self.calls = self._with_handlers([call for call in calls if call not in self.head])
        self._cached = [call for call in self.calls if isinstance(call, Cached)]
        self._shared = self._shared_values(own)
        self._names: dict[Cached, list[str]] = {}  # of the entries of each call
        self.specs = self.entry_specs(_LONG)
        self.slot_axes = _differing_axes(self.specs, self.entry_specs(_LONG + 1))
        self.full_axes = _differing_axes(
            *(self.entry_specs(length, rings=False) for length in (_LONG, _LONG + 1))
        )

    def _with_handlers(self, calls):
        counts: dict[str, int] = {}
        planned: list[Call | Cached] = []
        for call in calls:
            handler = incremental.handler_of(call.operation)
            if handler is None:
                planned.append(call)
                continue
            symbolic = self.graph.arguments(call, self.graph.specs)
            index = counts.get(handler.group, 0)
            counts[handler.group] = index + 1
            planned.append(Cached(self.graph, call, handler, index, symbolic))
        return planned

    def _shared_values(self, own):
        """Name the values of the source that steps read, by index.

        Cross-attention does not read them: its keys and values are computed once.
        """
        names: dict[int, str] = {}
        for call in self.calls:
            inputs = (call.call if isinstance(call, Cached) else call).inputs - own
            if isinstance(call, Cached) and call.handler.group == "keys and values":
                bound = incremental.bound(call.call.operation, call.call.args, call.call.kwargs)
                for name in ("encoder_sequence", "value", "key"):
                    if isinstance(bound.get(name), Value):
                        inputs.discard(bound[name].index)
                if isinstance(bound.get(_PADDING), Value) and _PADDING not in names.values():
                    names[bound[_PADDING].index] = _PADDING
            for index in sorted(inputs):
                names.setdefault(index, f"source_{len(names)}")
        return names

    @property
    def has_states(self) -> bool:
        """Whether layers have states, which new tokens change for good."""
        return self.specs.keys() != self.full_axes.keys()

    @property
    def keeps_all_tokens(self) -> bool:
        """Whether the cache can be cut after any token, which states and rings do not allow."""
        return self.specs.keys() == self.slot_axes.keys()

    def entry_specs(self, length: int, rings: bool = True) -> dict[str, keras.KerasTensor]:
        """Return symbolic tensors with the shapes of the cache of one row; see `empty_cache`."""
        return keras_internals.structure_of(lambda: self.empty_cache(1, length, rings))

    def cache_bytes(self, length: int, dtype: str | None = None) -> int:
        """Return the bytes of the cache of one row, with entries of a dtype or their own."""
        return sum(
            math.prod(spec.shape) * itemsize(dtype or spec.dtype)
            for spec in self.entry_specs(length).values()
        )

    def empty_cache(self, batch_size: Any, length: Any, rings: bool = True) -> dict[str, Tensor]:
        """Return the empty cache entries of all layers by name.

        Args:
            batch_size: int or int scalar tensor. B.
            length: int or int scalar tensor. S.
            rings: bool. Whether layers with a sliding window keep only the tokens within it.
        """
        cache: dict[str, Tensor] = {}
        for cached in self._cached:
            entries = cached.entries(batch_size, length, rings)
            self._names[cached] = list(entries)
            cache |= entries
        return cache

    def encode_source(self, token_ids: Tensor) -> dict[str, Tensor]:
        """Run the calls that depend only on the source; return the cache entries for steps."""
        values = self.graph.run(self.source_calls, {self._sources[0]: token_ids})
        entries = {name: values[index] for index, name in self._shared.items()}
        for index, name in self._shared.items():
            if keras_internals.implicit_mask(values[index]) is not None:
                reader = next(call.name for call in self.graph.calls if index in call.inputs)
                raise InputError(
                    f"{reader!r} reads a value of the encoder that has an implicit mask ({name}). "
                    "It is not kept for the steps of the decoder: pass the mask as an argument."
                )
        for cached in self._cached:
            entries |= cached.source(values)
        return entries

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor,
        cache: dict[str, Tensor],
        cache_update_index: int | Tensor,
        attention_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run new tokens; return hidden states and the cache, see `models.forward_cached`."""
        values: dict[int, Any] = {self._input: token_ids}
        arguments = (positions, cache, cache_update_index, attention_mask, padding_mask)
        for _, updated in self.run(values, *arguments):
            cache = updated
        return values[self.hidden_index], cache

    def run(
        self,
        values: dict[int, Any],
        positions: Tensor,
        cache: dict[str, Tensor],
        cache_update_index: int | Tensor,
        attention_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Iterator[tuple[Call, dict[str, Tensor]]]:
        """Run the calls of a step one by one; see `step`.

        Args:
            values: dict with the token ids; receives the outputs of the calls.
            positions, cache, cache_update_index, attention_mask, padding_mask: see `step`.

        Yields:
            Each call after it has run, and the cache.
        """
        step = Step(
            positions,
            cache_update_index,
            attention_mask,
            padding_mask,
            self._num_slots(cache, attention_mask is not None),
        )
        values |= {index: cache[name] for index, name in self._shared.items()}
        cache = dict(cache)
        for call in self.calls:
            if isinstance(call, Cached):
                outputs, changed = self._run(call, values, cache, step)
                cache |= changed
                call = call.call
                call.store(values, outputs)
            else:
                call.run(values)
            yield call, cache

    def _run(self, cached, values, cache, step):
        names = self._names[cached]
        if cached.handler.group == "keys and values":
            names = [*names, *(f"{name}_{cached.index}" for name in _CROSS)]
        suffix = f"_{cached.index}"
        own = {name.removesuffix(suffix): cache[name] for name in names if name in cache}
        layer = cached.call.operation
        outputs, changed = cached.handler.call(layer, cached.arguments(values), own, step)
        return outputs, cached.numbered(changed)

    def _num_slots(self, cache, without_rings):
        """Return the number of slots of an attention layer's full cache, or None."""
        for cached in self._cached:
            if cached.handler.group == "keys and values":
                for name in self._names[cached]:
                    if without_rings or name in self.slot_axes:
                        return ops.shape(cache[name])[2]
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (B, T, D) to float32 logits (B, T, V)."""
        values = self.graph.run(self.head, {self.hidden_index: hidden})
        return ops.cast(values[self.graph.outputs[0]], "float32")


def _differing_axes(specs, longer):
    """Return the axis in which the entries of a longer cache differ, by name."""
    pairs = {name: (specs[name].shape, longer[name].shape) for name in specs}
    return {
        name: [a == b for a, b in zip(*pair, strict=True)].index(False)
        for name, pair in pairs.items()
        if pair[0] != pair[1]
    }


class PrefixDecoder(Decoder):
    """A decoder that runs the whole text again at each step; its cache holds the token ids."""

    def __init__(self, model: keras.Model) -> None:
        self.graph = graph_of(model)
        (self._input,) = self.graph.inputs
        self.hidden_index, self.head = split_head(self.graph, self.graph.calls)
        if not all(map(_is_plain, self.head)):  # it may mix tokens, and runs on new ones alone
            self.hidden_index, self.head = self.graph.outputs[0], []
        self.hidden = self.graph.specs[self.hidden_index]
        self.calls = [call for call in self.graph.calls if call not in self.head]
        self.specs = {_TEXT: keras.KerasTensor((1, _LONG), "int32")}
        self.slot_axes = self.full_axes = {_TEXT: 1}
        self._longest = model.config.max_length

    def empty_cache(self, batch_size: Any, length: Any, rings: bool = True) -> dict[str, Tensor]:
        """Return a dict with `cached_token_ids`, int32 (B, S)."""
        return {_TEXT: ops.zeros((batch_size, length), "int32")}

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor,
        cache: dict[str, Tensor],
        cache_update_index: int | Tensor,
        attention_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the whole text; return the hidden states of the new tokens and the cache."""
        slots, new = (ops.expand_dims(x, (1, 3)) for x in (cache[_TEXT], token_ids))
        text = ops.squeeze(update_cache(slots, new, cache_update_index), (1, 3))
        read = text[:, : self._longest]  # there may be more slots
        hidden = self.graph.run(self.calls, {self._input: read})[self.hidden_index]
        places = positions if len(positions.shape) == 2 else ops.expand_dims(positions, 0)
        places = ops.zeros_like(token_ids) + ops.cast(places, "int32")
        last = ops.shape(hidden)[1] - 1
        places = ops.expand_dims(ops.minimum(places, last), -1)
        return ops.take_along_axis(hidden, places, axis=1), {_TEXT: text}


def _is_plain(call):
    plain = (keras.layers.Activation, keras.layers.Dense, keras.layers.ReversibleEmbedding)
    return type(call.operation) in plain


def itemsize(dtype: str) -> int:
    """Return the bytes of an element of a Keras dtype."""
    return np.dtype(keras.backend.standardize_dtype(dtype)).itemsize


_decoders: weakref.WeakKeyDictionary[keras.Model, Decoder] = weakref.WeakKeyDictionary()


def decoder_of(model: keras.Model) -> Decoder:
    """Return the `Decoder` of a model, which is planned once.

    Raises:
        InputError: if the model is not functional, or a layer cannot be run token by token.
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"`model` must be a functional `keras.Model`, got {type(model).__name__}.")
    if model not in _decoders:
        config = getattr(model, "config", None)
        is_incremental = getattr(config, "incremental", True)
        _decoders[model] = Decoder(model) if is_incremental else PrefixDecoder(model)
    return _decoders[model]
