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
from keras_llm.generation.samplers import Sampling

_SMALLEST = 16  # tokens; shorter prompts and budgets share this bucket


class Compiled:
    """`decode.generate`, `decode.score`, and `start`/`advance` for streaming, of one model.

    Args:
        model: a model from `models.causal_lm`, or from `models.seq2seq` for `generate_from`.
        stop_id: int, the token that ends a text.
        pad_id: int, fills unused places.
        jit_compile: bool. False runs the same graphs without XLA.

    Attributes:
        traces: int, how many graphs have been traced so far.

    Raises:
        InputError: if Keras runs on another backend.
    """

    def __init__(self, model, stop_id, pad_id, jit_compile=True):
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                "text tasks run on TensorFlow; set KERAS_BACKEND=tensorflow (weights trained on "
                f"{keras.backend.backend()} load there)."
            )
        self.model = model
        self.ids = {"stop_id": stop_id, "pad_id": pad_id}
        self.jit_compile = jit_compile
        self.traces = 0
        self._functions = {}

    def generate(self, token_ids, lengths, max_new_tokens, sampling):
        """`decode.generate` with array arguments; returns the last `State`, without cache."""
        rows, capacity, arguments = self._in_buckets(token_ids, lengths, max_new_tokens, sampling)

        def generate(token_ids, lengths, budget, *sampling):
            asked = decode.Request(lengths, budget, Sampling(*sampling))
            return self._loop(
                decode.start(self.model, token_ids, asked, capacity, **self.ids), asked
            )

        state = self._run("generate", capacity, generate, arguments)
        return _first(state, rows, arguments[2].max())

    def generate_from(self, encoder_token_ids, max_new_tokens, sampling):
        """`decode.generate` of a `seq2seq` model, from encoder token ids (B, S) and the config's
        `start_id`; returns the last `State`, without cache."""
        rows = len(encoder_token_ids)
        config = self.model.config
        sources = _padded(
            encoder_token_ids,
            (_bucket(rows, 1), _bucket(encoder_token_ids.shape[1])),
            config.pad_id,
        )
        prompts = np.full((rows, 1), config.start_id, "int32")
        _, capacity, arguments = self._in_buckets(
            prompts, np.ones(rows, "int32"), max_new_tokens, sampling, smallest=1
        )

        def generate_from(sources, token_ids, lengths, budget, *sampling):
            asked = decode.Request(lengths, budget, Sampling(*sampling))
            memory = models.encode(self.model, sources)
            return self._loop(
                decode.start(self.model, token_ids, asked, capacity, **self.ids, memory=memory),
                asked,
            )

        state = self._run("generate_from", capacity, generate_from, [sources, *arguments])
        return _first(state, rows, arguments[2].max())

    def stream(self, token_ids, lengths, max_new_tokens, sampling):
        """The same tokens as `generate`: yields the `State` after each."""
        rows, capacity, arguments = self._in_buckets(token_ids, lengths, max_new_tokens, sampling)

        def start(token_ids, lengths, budget, *sampling):
            asked = decode.Request(lengths, budget, Sampling(*sampling))
            return decode.start(self.model, token_ids, asked, capacity, **self.ids)

        def advance(state, lengths, budget, *sampling):
            asked = decode.Request(lengths, budget, Sampling(*sampling))
            return decode.advance(self.model, state, asked, **self.ids)

        state = self._run("start", capacity, start, arguments)
        while True:
            yield _first(state, rows, arguments[2].max())
            if bool(tf.reduce_all(state.done)):
                return
            state = self._run("advance", capacity, advance, [state, *arguments[1:]])

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

    def _loop(self, state, asked):
        return decode.finish(self.model, state, asked, **self.ids)._replace(cache={})

    def _in_buckets(self, token_ids, lengths, max_new_tokens, sampling, smallest=_SMALLEST):
        """Rows and columns added up to the bucket; a row that is added has nothing to do."""
        rows, length = token_ids.shape
        budget = np.minimum(max_new_tokens, self.model.config.max_length - lengths)
        capacity = _bucket(int(budget.max()))
        total = _bucket(rows, 1)
        width = _bucket(length, smallest)
        fields = [
            np.resize(np.asarray(value), rows)
            for value in (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed)
        ]
        dtypes = ("float32", "int32", "float32", "int32")
        return (
            rows,
            capacity,
            [
                _padded(token_ids, (total, width), self.ids["pad_id"]),
                _padded(lengths, (total,), 1),
                _padded(budget, (total,), 1),
                *(
                    _padded(field.astype(dtype), (total,), 1)
                    for field, dtype in zip(fields, dtypes, strict=True)
                ),
            ],
        )

    def _run(self, name, capacity, function, arguments):
        arguments = tf.nest.map_structure(tf.convert_to_tensor, arguments)
        shapes = tuple(tuple(tensor.shape) for tensor in tf.nest.flatten(arguments))
        key = (name, capacity, shapes)
        if key not in self._functions:
            self._functions[key] = tf.function(
                function, jit_compile=self.jit_compile, reduce_retracing=False
            ).get_concrete_function(*_specs(arguments))
            self.traces += 1
        return self._functions[key](*arguments)


def _bucket(size, smallest=_SMALLEST):
    """The next power of two, at least `smallest`."""
    return max(smallest, 1 << (size - 1).bit_length())


def _padded(array, shape, value):
    array = np.asarray(array)
    padded = np.full(shape, value, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


def _specs(arguments):
    return tf.nest.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), arguments
    )


def _first(state, rows, columns):
    """Without the rows and columns that a bucket added, and without the cache."""
    fields = ("token", "token_ids", "num_tokens", "log_probability", "stopped", "done")
    state = state._replace(cache={}, **{name: getattr(state, name)[:rows] for name in fields})
    return state._replace(token_ids=state.token_ids[:, :columns])
