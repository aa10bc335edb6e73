"""The decode loop compiled with `tf.function`: one trace for all batch sizes and lengths."""

import functools

import keras
import tensorflow as tf

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import decode
from keras_llm.generation.samplers import Sampling

_IDS = tf.TensorSpec((None, None), tf.int32)
_INTS = tf.TensorSpec((None,), tf.int32)
_FLOATS = tf.TensorSpec((None,), tf.float32)
_SAMPLING = (_FLOATS, _INTS, _FLOATS, _INTS)  # temperature, top_k, top_p, seed


class Compiled:
    """`decode.generate`, `decode.score`, and `start`/`advance` for streaming, of one model.

    Args:
        model: a model from `models.causal_lm`, or from `models.seq2seq` for `generate_from`.
        stop_id: int, the token that ends a text.
        pad_id: int, fills unused places.

    Raises:
        InputError: if Keras runs on another backend.
    """

    def __init__(self, model, stop_id, pad_id):
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                "text tasks run on TensorFlow; set KERAS_BACKEND=tensorflow (weights trained on "
                f"{keras.backend.backend()} load there)."
            )
        self.model = model
        self.ids = {"stop_id": stop_id, "pad_id": pad_id}

    def generate(self, token_ids, lengths, max_new_tokens, sampling):
        """`decode.generate` with array arguments; returns the last `State`, without cache."""
        return decode.State(
            *self._generate(token_ids, lengths, max_new_tokens, *_fields(sampling)), cache={}
        )

    def generate_from(self, encoder_token_ids, max_new_tokens, sampling):
        """`decode.generate` of a `seq2seq` model, from encoder token ids (B, S) and the config's
        `start_id`; returns the last `State`, without cache."""
        return decode.State(
            *self._generate_from(encoder_token_ids, max_new_tokens, *_fields(sampling)), cache={}
        )

    def stream(self, token_ids, lengths, max_new_tokens, sampling):
        """The same tokens as `generate`: yields the `State` after each."""
        asked = decode.request(
            self.model, tf.constant(lengths), tf.constant(max_new_tokens), sampling.tensors()
        )
        capacity = tf.reduce_max(asked.budget)
        asked = (asked.lengths, asked.budget, *_fields(asked.sampling))
        state = self._start(tf.constant(token_ids), capacity, *asked)
        yield state
        while not bool(tf.reduce_all(state.done)):
            state = self._advance(state, *asked)
            yield state

    def score(self, token_ids, lengths):
        """`decode.score` with array arguments."""
        return self._score(token_ids, lengths)

    @functools.cached_property
    def _generate(self):
        @tf.function(input_signature=(_IDS, _INTS, _INTS, *_SAMPLING))
        def generate(token_ids, lengths, max_new_tokens, *sampling):
            state = decode.generate(
                self.model, token_ids, lengths, max_new_tokens, Sampling(*sampling), **self.ids
            )
            return tuple(state)[:-1]

        return generate

    @functools.cached_property
    def _generate_from(self):
        @tf.function(input_signature=(_IDS, _INTS, *_SAMPLING))
        def generate_from(encoder_token_ids, max_new_tokens, *sampling):
            rows = tf.shape(encoder_token_ids)[0]
            state = decode.generate(
                self.model,
                tf.fill((rows, 1), self.model.config.start_id),
                tf.ones((rows,), tf.int32),
                max_new_tokens,
                Sampling(*sampling),
                **self.ids,
                memory=models.encode(self.model, encoder_token_ids),
            )
            return tuple(state)[:-1]

        return generate_from

    @functools.cached_property
    def _score(self):
        return tf.function(
            lambda token_ids, lengths: decode.score(self.model, token_ids, lengths),
            input_signature=(_IDS, _INTS),
        )

    @functools.cached_property
    def _start(self):
        @tf.function(input_signature=(_IDS, tf.TensorSpec((), tf.int32), _INTS, _INTS, *_SAMPLING))
        def start(token_ids, capacity, lengths, budget, *sampling):
            asked = decode.Request(lengths, budget, Sampling(*sampling))
            return decode.start(self.model, token_ids, asked, capacity, **self.ids)

        return start

    @functools.cached_property
    def _advance(self):
        state = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
            self._start.get_concrete_function().structured_outputs,
        )

        @tf.function(input_signature=(state, _INTS, _INTS, *_SAMPLING))
        def advance(state, lengths, budget, *sampling):
            asked = decode.Request(lengths, budget, Sampling(*sampling))
            return decode.advance(self.model, state, asked, **self.ids)

        return advance


def _fields(sampling):
    sampling = sampling.tensors()
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed
