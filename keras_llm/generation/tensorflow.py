"""The decode loop compiled with XLA: one compilation for each bucket of shapes.

Rows, prompt lengths and room for new tokens are rounded up to buckets, so that calls of like sizes
share one compilation; settings are tensors and compile nothing.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import decode
from keras_llm.generation.samplers import SETTINGS, Automaton, Sampling, dtype_of

_SMALLEST = 16  # tokens; shorter prompts and budgets share this bucket
_BLOCK = 8  # tokens between two questions whether a text is over


class Compiled:
    """`decode.generate`, `decode.score`, and streaming, of one model.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        stop_id: int, the token that ends a text.
        pad_id: int, fills unused places.
        jit_compile: bool. False runs the same graphs without XLA. None means XLA for a float32
            model; in a lower precision XLA rounds in other places than the graph that is
            exported, and texts would differ.

    Attributes:
        traces: int, how many graphs have been traced and compiled so far.

    Raises:
        InputError: if Keras runs on another backend.
    """

    def __init__(self, model, stop_id, pad_id, jit_compile=None):
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                "text tasks run on TensorFlow; set KERAS_BACKEND=tensorflow (weights trained on "
                f"{keras.backend.backend()} load there)."
            )
        self.model = model
        self.ids = {"stop_id": stop_id, "pad_id": pad_id}
        if jit_compile is None:
            jit_compile = model.get_layer("token_embedding").compute_dtype == "float32"
        self.jit_compile = jit_compile
        self.traces = 0
        self._functions = {}

    def generate(
        self,
        token_ids,
        lengths,
        max_new_tokens,
        sampling,
        encoder_token_ids=None,
        samples=1,
        alternatives=0,
        is_over=None,
    ):
        """`decode.generate` with array arguments.

        Args:
            token_ids, lengths, max_new_tokens, sampling, samples, alternatives: as of
                `decode.generate`.
            encoder_token_ids: int32 (B, S), of a `seq2seq` model.
            is_over: function from row and its new token ids, a list, to whether the text ends
                there; it is asked every few tokens. None asks nothing.

        Returns:
            The last `State`, without cache; `done` of a row that `is_over` ended is True.
        """
        run = _Run(self, token_ids, lengths, max_new_tokens, sampling, samples, alternatives)
        state = run.start(encoder_token_ids)
        if is_over is None:
            return run.visible(run.advance(state, run.capacity))
        while True:
            state = self._ask(run, state, is_over)
            if bool(tf.reduce_all(state.done)):
                return run.visible(state)
            state = run.advance(state, int(state.step) + _BLOCK)

    def stream(self, token_ids, lengths, max_new_tokens, sampling):
        """The same tokens as `generate`: yields the `State` after each."""
        run = _Run(self, token_ids, lengths, max_new_tokens, sampling)
        state = run.start()
        while True:
            yield run.visible(state)
            if bool(tf.reduce_all(state.done)):
                return
            state = run.advance(state, int(state.step) + 1)

    @staticmethod
    def _ask(run, state, is_over):
        done = state.done.numpy()
        tokens, counts = state.token_ids.numpy(), state.num_tokens.numpy()
        for row in np.flatnonzero(~done[: run.rows]):
            done[row] = is_over(int(row), tokens[row, : counts[row]].tolist())
        return state._replace(done=tf.constant(done))

    def score(self, token_ids, lengths):
        """`decode.score` with array arguments."""
        return self._score(token_ids, lengths)

    @functools.cached_property
    def _score(self):
        return tf.function(
            lambda token_ids, lengths: decode.score(self.model, token_ids, lengths),
            input_signature=(
                tf.TensorSpec((None, None), tf.int32),
                tf.TensorSpec((None,), tf.int32),
            ),
        )

    def call(self, name, static, function, arguments):
        """A function compiled for the shapes of its arguments and some static values."""
        arguments = tf.nest.map_structure(tf.convert_to_tensor, arguments)
        shapes = tuple(tuple(tensor.shape) for tensor in tf.nest.flatten(arguments))
        key = (name, static, shapes)
        if key not in self._functions:
            specs = tf.nest.map_structure(
                lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), arguments
            )
            compiled = tf.function(function, jit_compile=self.jit_compile)
            self._functions[key] = compiled.get_concrete_function(*specs)
            self.traces += 1
        return self._functions[key](*arguments)


class _Run:
    """One call of `Compiled`: its arguments in buckets, and its two compiled functions."""

    def __init__(
        self, compiled, token_ids, lengths, max_new_tokens, sampling, samples=1, alternatives=0
    ):
        self.compiled, self.samples, self.alternatives = compiled, samples, alternatives
        prompts, length = token_ids.shape
        self.rows = prompts * samples
        limit = compiled.model.config.max_length - np.repeat(lengths, samples)
        budget = np.minimum(max_new_tokens, limit).astype("int32")
        self.columns = int(budget.max())
        self.capacity = _bucket(self.columns)
        self.total = _bucket(prompts, 1)
        width = length if length == 1 else _bucket(length)
        token_ids = _padded(token_ids, (self.total, width), compiled.ids["pad_id"])
        lengths = _padded(lengths, (self.total,), 1)
        rows = self.total * samples
        fields = {}
        for name in SETTINGS:
            fields[name] = np.resize(np.asarray(getattr(sampling, name), dtype_of(name)), rows)
        bias = sampling.logit_bias
        if bias is None:
            bias = np.zeros((1, compiled.model.config.vocabulary_size), "float32")
        elif len(bias) > 1:
            bias = _padded(bias, (rows, bias.shape[1]), 0)
        fields["logit_bias"] = bias
        forced = sampling.forced_tokens
        if forced is None:
            forced = np.zeros((1, 0), "int32")
        forced = np.resize(forced, (self.rows, forced.shape[1]))
        fields["forced_tokens"] = _padded(forced, (rows, _bucket(forced.shape[1] or 1, 8)), -1)
        fields["automaton"] = _automaton(sampling.automaton)
        budget = _padded(budget, (rows,), 1)
        self.asked = decode.Request(token_ids, lengths, budget, Sampling(**fields))

    def start(self, encoder_token_ids=None):
        """`decode.start`."""
        compiled = self.compiled
        model, ids = compiled.model, compiled.ids
        sources = []
        if encoder_token_ids is not None:
            shape = (self.total, _bucket(encoder_token_ids.shape[1]))
            sources = [_padded(encoder_token_ids, shape, model.config.pad_id)]

        def start(asked, *sources):
            memory = models.encode(model, *sources) if sources else None
            state, asked = decode.start(
                model,
                asked,
                self.capacity,
                **ids,
                memory=memory,
                samples=self.samples,
                alternatives=self.alternatives,
            )
            return state, asked

        static = (self.capacity, self.samples, self.alternatives)
        state, self.asked = compiled.call("start", static, start, [self.asked, *sources])
        return state

    def advance(self, state, step):
        """`decode.advance_until`."""
        model, ids = self.compiled.model, self.compiled.ids

        def advance(state, asked, step):
            return decode.advance_until(model, state, asked, **ids, step=step)

        arguments = [state, self.asked, np.array(step, "int32")]
        return self.compiled.call("advance", (), advance, arguments)

    def visible(self, state):
        """Without the rows and columns that a bucket added, and without the cache."""
        rows, columns = self.rows, self.columns
        by_row = {
            name: getattr(state, name)[:rows] for name in ("token", "num_tokens", "stopped", "done")
        }
        by_place = {
            name: getattr(state, name)[:rows, :columns]
            for name in (
                "token_ids",
                "token_log_probabilities",
                "alternative_ids",
                "alternative_log_probabilities",
            )
        }
        return state._replace(cache={}, **by_row, **by_place)


def _automaton(automaton):
    """In buckets too; without states if there is none."""
    if automaton is None:
        return Automaton(*(np.zeros(shape, "int32") for shape in ((0, 0), (0,), ())))
    next_state, token_class, start = automaton
    shape = tuple(_bucket(size) for size in next_state.shape)
    return Automaton(
        _padded(next_state, shape, -1), np.asarray(token_class), np.array(start, "int32")
    )


def _bucket(size, smallest=_SMALLEST):
    """The next power of two, at least `smallest`."""
    return max(smallest, 1 << (size - 1).bit_length())


def _padded(array, shape, value):
    array = np.asarray(array)
    padded = np.full(shape, value, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded
