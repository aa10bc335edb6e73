"""Pad the arguments of a call of `CompiledGenerator` to buckets and call its functions."""

import keras
import numpy as np
from keras import ops

from keras_llm import models
from keras_llm.generation import loop
from keras_llm.generation.prefix_cache import drops_tokens
from keras_llm.generation.sampling import SETTINGS, Sampling, dtype_of

_SMALLEST = 16  # tokens; shorter prompts and budgets share this bucket
_LARGEST_CHUNK = 256  # tokens prefilled at a time after a cached prefix


class Run:
    """One call of a `CompiledGenerator`, with its arguments padded to buckets.

    Args:
        compiled: `CompiledGenerator`.
        token_ids, lengths, max_new_tokens, sampling, stop_ids, samples: see
            `CompiledGenerator.generate`.

    Attributes:
        capacity: int, the number of slots for new tokens.
    """

    def __init__(
        self, compiled, token_ids, lengths, max_new_tokens, sampling, stop_ids=(), samples=1
    ):
        self.constraint = sampling.constraint and sampling.constraint.recorder()
        if self.constraint is not None:
            compiled = compiled.without_xla
        self.compiled, self.samples, self.token_ids = compiled, samples, token_ids
        prompts, length = token_ids.shape
        self.rows = prompts * samples
        limit = compiled.model.config.max_length - np.repeat(lengths, samples)
        budget = np.minimum(max_new_tokens, limit).astype("int32")
        self.columns = int(budget.max())
        self.capacity = _bucket(self.columns)
        self.total = _bucket(prompts, 1)
        width = length if length == 1 else _bucket(length)
        token_ids = _padded(np.asarray(token_ids, "int32"), (self.total, width), compiled.pad_id)
        lengths = _padded(np.asarray(lengths, "int32"), (self.total,), 1)
        rows = self.total * samples
        fields = {}
        for name in SETTINGS:
            fields[name] = np.resize(np.asarray(getattr(sampling, name), dtype_of(name)), rows)
        bias, forced = sampling.logit_bias, sampling.forced_tokens
        if bias is None:
            bias = np.zeros((1, compiled.model.config.vocabulary_size), "float32")
        elif len(bias) > 1:
            bias = _padded(bias, (rows, bias.shape[1]), 0)
        fields["logit_bias"] = bias
        forced = np.zeros((1, 0), "int32") if forced is None else forced
        forced = np.resize(forced, (self.rows, forced.shape[1]))
        fields["forced_tokens"] = _padded(forced, (rows, _bucket(forced.shape[1] or 1, 8)), -1)
        key = () if self.constraint is None else (np.array(self.constraint.key, "int32"),)
        fields["constraint"] = key
        budget = _padded(budget, (rows,), 0)  # constraints skip the rows that the bucket adds
        self.request = loop.Request(token_ids, lengths, budget, Sampling(**fields))
        stops = np.union1d(compiled.stop_ids, np.array(stop_ids, "int32"))
        self.stops = _padded(stops, (_bucket(len(stops), 1),), -1)

    def start(self, encoder_token_ids=None, alternatives=0, prefix_cache=None):
        """Run `loop.start`."""
        compiled, capacity, first, chunk = self.compiled, self.capacity, 0, 0
        if prefix_cache is not None:
            first = prefix_cache.shared(self.token_ids, drops_tokens(compiled.model))
        held = []
        if first:
            held = [prefix_cache.cache, np.array(first, "int32")]
            chunk = min(_bucket(self.token_ids.shape[1] - first), _LARGEST_CHUNK)
            # The new cache must hold all slots of the cached prefix.
            slots = max(entry.shape[2] for entry in prefix_cache.cache.values())
            capacity = max(capacity, slots - self.request.token_ids.shape[1])

        # If one graph serves all sizes, the capacity is an argument as well.
        room = [np.array(capacity, "int32")] if compiled.any_size else []

        def start(request, stops, sources, held, room):
            return loop.start(
                compiled.model,
                request,
                room[0] if room else capacity,
                stop_id=stops,
                pad_id=compiled.pad_id,
                encoder_cache=self._encoder_cache(sources),
                samples=self.samples,
                alternatives=alternatives,
                prefix=(*held, chunk) if held else None,
            )

        name = ("start", None if room else capacity, self.samples, alternatives, chunk)
        arguments = [self.request, self.stops, self._sources(encoder_token_ids), held, room]
        state, self.request = self._call(name, start, arguments, compiled.any_size)
        return state

    def advance(self, state, num_steps):
        """Run `loop.advance_until`."""
        compiled, model, pad_id = self.compiled, self.compiled.model, self.compiled.pad_id

        def advance(state, request, stops, num_steps):
            return loop.advance_until(model, state, request, stops, pad_id, num_steps)

        arguments = [state, self.request, self.stops, np.array(num_steps, "int32")]
        return self._call("advance", advance, arguments, compiled.any_size)

    def check_stop(self, state, is_over):
        """Set `done` for the rows that `is_over` ends."""
        done = np.array(state.done)
        tokens, counts = np.asarray(state.token_ids), np.asarray(state.num_tokens)
        for row in np.flatnonzero(~done[: self.rows]):
            done[row] = is_over(int(row), tokens[row, : counts[row]].tolist())
        return state._replace(done=ops.convert_to_tensor(done))

    def search(self, function, static, numbers, encoder_token_ids=None):
        """Run a search and drop the rows that the bucket added."""
        compiled = self.compiled

        def run(request, stops, sources, numbers):
            options = {**static, **numbers, "stop_id": stops, "pad_id": compiled.pad_id}
            if sources:
                options["encoder_cache"] = self._encoder_cache(sources)
            return function(compiled.model, request, capacity=self.capacity, **options)

        name = (function, self.capacity, *sorted(static.items()))
        arguments = [self.request, self.stops, self._sources(encoder_token_ids), numbers]
        result = compiled.call(name, run, arguments)
        result = result._make(field[: self.rows] if len(field.shape) else field for field in result)
        lacks_text = self.constraint is not None and np.isneginf(result.log_probability[:, 0]).any()
        if lacks_text and self.constraint.error is not None:
            raise self.constraint.error
        return result

    def _call(self, *arguments):
        """Call `CompiledGenerator.call`; raise the error of a constraint."""
        result = self.compiled.call(*arguments)
        if self.constraint is not None:
            np.asarray(keras.tree.flatten(result)[0])  # wait for JAX
            if self.constraint.error is not None:
                raise self.constraint.error
        return result

    def _sources(self, encoder_token_ids):
        if encoder_token_ids is None:
            return []
        shape = (self.total, _bucket(encoder_token_ids.shape[1]))
        return [_padded(encoder_token_ids, shape, self.compiled.model.config.pad_id)]

    def _encoder_cache(self, sources):
        return models.encode_source(self.compiled.model, *sources) if sources else None

    def visible(self, state):
        """Remove the cache and the rows and columns that the bucket added from a `State`."""
        cut = (slice(self.rows), slice(self.columns))
        return loop.State(*[field[cut[: len(field.shape)]] for field in state[:-1]], cache={})


def _bucket(size, smallest=_SMALLEST):
    """Return the next power of two, at least `smallest`."""
    return max(smallest, 1 << (size - 1).bit_length())


def _padded(array, shape, value):
    array = np.asarray(array)
    padded = np.full(shape, value, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded
