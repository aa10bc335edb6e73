"""Compile the decode loop with XLA, once per bucket of shapes.

The number of rows, prompt tokens and new tokens is rounded up to a bucket, so that calls of similar
size share one compilation. Settings are tensors and do not trigger compilation. With
`KERAS_LLM_XLA=0` in the environment, TensorFlow runs the same graphs without XLA, one graph for all
sizes: the first call is faster, later calls are slower. Requests with a constraint always run
without XLA, since XLA cannot call Python.
"""

import functools
import importlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import loop, scoring
from keras_llm.generation.prefix_cache import PrefixCache, has_ring_caches
from keras_llm.generation.sampling import SETTINGS, Sampling, dtype_of
from keras_llm.types import Tensor

_SMALLEST = 16  # tokens; shorter prompts and budgets share this bucket
_LARGEST_CHUNK = 256  # tokens prefilled at a time after a cached prefix
_BLOCK = 8  # steps between stop checks


class CompiledGenerator:
    """Compiled `generate`, streaming, searches, `score` and `token_log_probabilities` for a model.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        stop_id: int or int array (S,). Stop tokens.
        pad_id: int. Padding token.
        jit_compile: bool. False runs the same graphs without XLA. None enables XLA for a float32
            model, unless `KERAS_LLM_XLA=0`. In lower precision, XLA rounds differently from the
            exported graph, so texts would differ. JAX always uses XLA.

    Attributes:
        traces: int, the number of graphs traced and compiled so far.

    Raises:
        InputError: if the Keras backend is not TensorFlow or JAX.
    """

    def __init__(
        self,
        model: models.CausalLM | models.Seq2Seq,
        stop_id: int | Sequence[int] | np.ndarray,
        pad_id: int,
        jit_compile: bool | None = None,
    ) -> None:
        backend = keras.backend.backend()
        if backend not in ("tensorflow", "jax"):
            raise InputError(
                f"text tasks run on TensorFlow and JAX, not on {backend}; set "
                "KERAS_BACKEND=tensorflow (it loads the same weights)."
            )
        self.backend = importlib.import_module(f"keras_llm.generation.{backend}")
        self.model = model
        self.stop_ids = np.reshape(stop_id, -1).astype("int32")
        self.pad_id = pad_id
        if jit_compile is None:
            is_wanted = os.environ.get("KERAS_LLM_XLA", "1") != "0"
            is_float32 = model.get_layer("token_embedding").compute_dtype == "float32"
            jit_compile = is_wanted and is_float32
        self.jit_compile = jit_compile
        self.traces = 0
        self._functions: dict[Any, Any] = {}  # for the shapes of their arguments
        self._functions_of_any_size: dict[Any, Any] = {}

    def generate(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        max_new_tokens: int | np.ndarray,
        sampling: Sampling,
        encoder_token_ids: np.ndarray | None = None,
        samples: int = 1,
        alternatives: int = 0,
        stop_ids: Sequence[int] = (),
        is_over: Callable[[int, list[int]], bool] | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> loop.State:
        """Run `loop.generate` with array arguments.

        Args:
            token_ids, lengths, max_new_tokens, sampling, samples, alternatives: see
                `loop.generate`.
            encoder_token_ids: int32 (B, S), the encoder's token ids of a `seq2seq` model.
            stop_ids: ints, additional stop tokens.
            is_over: None, or a function of a row index and the row's new token ids, a list, that
                returns whether to end the row. Called every 8 steps.
            prefix_cache: None, or a `PrefixCache` for one row; the call reads and updates it.

        Returns:
            The last `State`, without the cache. `done` is True for rows that `is_over` ended.
        """
        run = _Run(self, token_ids, lengths, max_new_tokens, sampling, stop_ids, samples)
        state = run.start(encoder_token_ids, alternatives, prefix_cache)
        if is_over is None:
            state = run.advance(state, run.capacity)
        else:
            state = run.check_stop(state, is_over)
            while not np.all(state.done):
                state = run.check_stop(run.advance(state, _BLOCK), is_over)
        if prefix_cache is not None:
            prefix_cache.hold(token_ids, state)
        return run.visible(state)

    def stream(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        max_new_tokens: int | np.ndarray,
        sampling: Sampling,
        encoder_token_ids: np.ndarray | None = None,
        stop_ids: Sequence[int] = (),
        prefix_cache: PrefixCache | None = None,
    ) -> Iterator[loop.State]:
        """Yield the `State` after each step; the tokens are the same as those of `generate`."""
        run = _Run(self, token_ids, lengths, max_new_tokens, sampling, stop_ids)
        state = run.start(encoder_token_ids, prefix_cache=prefix_cache)
        while True:
            if prefix_cache is not None:
                prefix_cache.hold(token_ids, state)
            yield run.visible(state)
            if np.all(state.done):
                return
            state = run.advance(state, 1)

    def search(
        self,
        function: Callable[..., Any],
        static: dict[str, Any],
        numbers: dict[str, Any],
        token_ids: np.ndarray,
        lengths: np.ndarray,
        max_new_tokens: int | np.ndarray,
        sampling: Sampling,
        encoder_token_ids: np.ndarray | None = None,
        stop_ids: Sequence[int] = (),
    ) -> Any:
        """Run a search with array arguments.

        Args:
            function: one of the searches in `generation`: a function of the model, a
                `loop.Request`, and the keyword arguments `capacity`, `stop_id`, `pad_id`,
                `encoder_cache` (for a `seq2seq` model), `static` and `numbers`. It returns a
                NamedTuple of tensors (B, ...) or scalars. One graph is compiled per function,
                `static` and bucket.
            static: dict of keyword arguments that determine the graph.
            numbers: dict of numeric keyword arguments, passed as tensors.
            others: see `generate`.

        Returns:
            The result of `function`, without the rows that the bucket added.
        """
        run = _Run(self, token_ids, lengths, max_new_tokens, sampling, stop_ids)
        return run.search(function, static, numbers, encoder_token_ids)

    def score(self, token_ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Run `generation.score` with array arguments."""
        function = functools.partial(scoring.score, self.model)
        return self._call_of_any_size("score", function, [token_ids, lengths])

    def token_log_probabilities(
        self,
        token_ids: np.ndarray,
        alternatives: int = 0,
        encoder_token_ids: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run `generation.token_log_probabilities` with array arguments."""
        arguments = [token_ids] if encoder_token_ids is None else [token_ids, encoder_token_ids]
        function = functools.partial(
            scoring.token_log_probabilities, self.model, alternatives=alternatives
        )
        return self._call_of_any_size(("alternatives", alternatives), function, arguments)

    def _call_of_any_size(self, name, function, arguments):
        ranks = tuple(array.ndim for array in arguments)
        key = (name, ranks)
        if key not in self._functions_of_any_size:
            self._functions_of_any_size[key] = self.backend.of_any_size(self.model, function, ranks)
        return self._functions_of_any_size[key](*arguments)

    def release(self) -> None:
        """Free the compiled functions."""
        if "without_xla" in self.__dict__ and self.jit_compile:
            self.__dict__.pop("without_xla").release()
        self._functions_of_any_size.clear()
        while self._functions:
            _, function = self._functions.popitem()
            if hasattr(self.backend, "release"):
                self.backend.release(function)

    @functools.cached_property
    def without_xla(self) -> "CompiledGenerator":
        """The same functions for requests with a constraint: XLA cannot call Python."""
        if not self.jit_compile:
            return self
        return CompiledGenerator(self.model, self.stop_ids, self.pad_id, jit_compile=False)

    @property
    def any_size(self) -> bool:
        """Whether one graph serves all sizes. XLA and JAX compile one per size."""
        return not self.jit_compile and keras.backend.backend() == "tensorflow"

    def call(
        self,
        name: Hashable,
        function: Callable[..., Any],
        arguments: list[Any],
        any_size: bool = False,
    ) -> Any:
        """Call a function, compiled for the shapes of its arguments.

        Args:
            name: hashable value that identifies the function.
            function: function of tensors.
            arguments: list of arrays, tensors or nested structures of them.
            any_size: bool. Whether to compile for any number of rows and tokens instead.
        """
        arguments = keras.tree.map_structure(ops.convert_to_tensor, arguments)
        like = [_any_size(argument) for argument in arguments] if any_size else arguments
        shapes = tuple(tuple(tensor.shape) for tensor in keras.tree.flatten(like))
        key = (name, shapes)
        if key not in self._functions:
            self._functions[key] = self.backend.compiled(
                self.model, function, like, self.jit_compile
            )
            self.traces += 1
        return self._functions[key](*arguments)


class _Run:
    """One call of `CompiledGenerator`: arguments padded to buckets, and its compiled functions."""

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
            first = prefix_cache.shared(self.token_ids, has_ring_caches(compiled.model))
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


def _any_size(argument):
    """Replace tensors by `KerasTensor`s with None for the numbers of rows and of tokens.

    These are the first two axes, or the first and third of a key-value entry (B, K, S, H).
    """

    def free(tensor):
        axes = (0, 2) if len(tensor.shape) == 4 else (0, 1)
        shape = [None if axis in axes else size for axis, size in enumerate(tensor.shape)]
        return keras.KerasTensor(shape, tensor.dtype)

    result = keras.tree.map_structure(free, argument)
    if not isinstance(argument, loop.Request):
        return result
    bias = argument.sampling.logit_bias
    bias = keras.KerasTensor((None, bias.shape[1]), bias.dtype)
    return result._replace(sampling=result.sampling._replace(logit_bias=bias))


def _bucket(size, smallest=_SMALLEST):
    """Return the next power of two, at least `smallest`."""
    return max(smallest, 1 << (size - 1).bit_length())


def _padded(array, shape, value):
    array = np.asarray(array)
    padded = np.full(shape, value, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded
