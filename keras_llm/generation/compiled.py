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
from keras_llm.generation.compiled_run import Run
from keras_llm.generation.prefix_cache import PrefixCache
from keras_llm.generation.sampling import Sampling
from keras_llm.models.decoder import decoder_of
from keras_llm.types import Tensor

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
            is_float32 = decoder_of(model).hidden.dtype == "float32"
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
        run = Run(self, token_ids, lengths, max_new_tokens, sampling, stop_ids, samples)
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
        run = Run(self, token_ids, lengths, max_new_tokens, sampling, stop_ids)
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
        run = Run(self, token_ids, lengths, max_new_tokens, sampling, stop_ids)
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
