"""Models that predict tokens, trained without their logits."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.layers import causal_mask
from keras_llm.training.chunked import ChunkedCrossEntropy
from keras_llm.training.replicas import check_one_replica


class LanguageModelTrainer(keras.Model):
    """A model that predicts tokens together with its loss, for `compile(optimizer)` and `fit`.

    The loss is the mean cross-entropy of the target tokens, made chunk by chunk from the last
    hidden states (see `ChunkedCrossEntropy`): the float tensor (B, T, V) of logits never exists.
    `fit` logs `loss` and `accuracy`, the share of targets with the largest logit. The weights are
    those of `model`, which is what is saved and used when training is done.

    Args:
        model: a model from `models.causal_lm`, `models.seq2seq` or `models.masked_lm`.
        ignore_id: int or None. Targets that do not count (padding).
        label_smoothing: float in [0, 1). Share of the target's probability that all tokens get.
        z_loss: float >= 0, the weight of `log(sum(exp(logits)))^2`.
        chunk_size: int > 0, tokens in a chunk; None for as many as have 4 million logits.
        segment_begin_id: int or None, of a `causal_lm` model: the token that begins each text in a
            packed row. Tokens then see only their own text, and positions begin anew with it.

    Data: pairs of the model's inputs and int targets (B, T), or (B, M) of a `masked_lm` model, as
    `data.packed_dataset` gives them; a third part, float (B, T) or (B,), weighs tokens or rows. The
    loss is divided by the sum of weights.

    Raises:
        InputError: naming the argument that is wrong; under a `tf.distribute` strategy with more
            than one replica; in `fit` and `evaluate`, if an array of token
            ids has one that the vocabulary has not.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> trainer = LanguageModelTrainer(model, ignore_id=0)
    >>> trainer.compile("adamw")
    >>> ids = np.random.default_rng(0).integers(1, 512, (8, 17))
    >>> history = trainer.fit(ids[:, :-1], ids[:, 1:], verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'loss']
    """

    def __init__(
        self,
        model,
        ignore_id=None,
        label_smoothing=0.0,
        z_loss=0.0,
        chunk_size=None,
        segment_begin_id=None,
        name=None,
    ):
        super().__init__(name=name)
        check_one_replica("LanguageModelTrainer")
        if not models.has_token_head(model):
            raise InputError(
                "`model` must come from causal_lm, seq2seq or masked_lm, got "
                f"{getattr(model, 'head', type(model).__name__)}."
            )
        for argument, ok, rule in (
            ("label_smoothing", 0 <= label_smoothing < 1, "in [0, 1)"),
            ("z_loss", z_loss >= 0, ">= 0"),
            ("chunk_size", chunk_size is None or chunk_size > 0, "a positive int or None"),
        ):
            if not ok:
                raise InputError(f"`{argument}` must be {rule}, got {locals()[argument]!r}.")
        if segment_begin_id is not None and not isinstance(model, models.CausalLM):
            raise InputError("`segment_begin_id` is for a model from causal_lm.")
        self.model = model
        self.ignore_id = ignore_id
        self.segment_begin_id = segment_begin_id
        self.cross_entropy = ChunkedCrossEntropy(
            label_smoothing, z_loss, models.output_head(model).soft_cap, chunk_size
        )
        self.accuracy = keras.metrics.Mean(name="accuracy")

    def get_config(self):
        loss = dataclasses.asdict(self.cross_entropy)
        rest = {"ignore_id": self.ignore_id, "segment_begin_id": self.segment_begin_id}
        return {"model": models.describe(self.model), **loss, **rest}

    def call(self, inputs, training=None):
        """The states that logits are made from, (B, T, D)."""
        places = {}
        if self.segment_begin_id is not None:
            places = _segments(ops.equal(inputs, self.segment_begin_id))
        return models.prediction_states(self.model, inputs, **places)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        targets = ops.reshape(y, (-1,))
        weights = ops.reshape(self._weights(y, sample_weight), (-1,))
        states = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        head = models.output_head(self.model)
        total = ops.maximum(ops.sum(weights), 1e-9)
        if training:
            loss, _, right = self.cross_entropy.weighted_sum(
                states, head.kernel, targets, weights / total, head.bias, not head.trainable
            )
        else:
            losses, right = self.cross_entropy.token_losses(states, head.kernel, targets, head.bias)
            loss = ops.sum(losses * weights) / total
        self.accuracy.update_state(right, sample_weight=weights)
        return loss + sum(self.losses)

    def fit(self, x=None, y=None, **kwargs):
        self._check_ids(x, y)
        return super().fit(x, y, **kwargs)

    def evaluate(self, x=None, y=None, **kwargs):
        self._check_ids(x, y)
        return super().evaluate(x, y, **kwargs)

    def _weights(self, y, sample_weight):
        weights = ops.ones_like(y, "float32")
        if self.ignore_id is not None:
            weights = ops.cast(ops.not_equal(y, self.ignore_id), "float32")
        if sample_weight is None:
            return weights
        sample_weight = ops.cast(sample_weight, "float32")
        if len(sample_weight.shape) < len(y.shape):
            sample_weight = ops.expand_dims(sample_weight, -1)
        return weights * sample_weight

    def _check_ids(self, *arrays):
        for array in keras.tree.flatten(arrays):
            if isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.size:
                check_token_ids(array, self.model.config.vocabulary_size)


def check_token_ids(token_ids, vocabulary_size):
    """Raise InputError if an id of an int array is not in `0 .. vocabulary_size - 1`."""
    least, most = int(np.min(token_ids)), int(np.max(token_ids))
    if least < 0 or most >= vocabulary_size:
        raise InputError(
            f"`token_ids` must be in 0 .. {vocabulary_size - 1}, the model's vocabulary, got "
            f"{least if least < 0 else most}."
        )


def _segments(begins):
    """Where texts begin, bool (B, T) -> positions (B, T) and who may attend to whom (B, T, T)."""
    places = ops.cumsum(ops.ones_like(begins, "int32"), axis=1) - 1
    segments = ops.cumsum(ops.cast(begins, "int32"), axis=1)
    causal = causal_mask(places, places)
    started = ops.logical_and(causal, ops.expand_dims(begins, 1))
    first = ops.max(ops.where(started, ops.expand_dims(places, 1), 0), axis=2)
    same = ops.equal(ops.expand_dims(segments, 2), ops.expand_dims(segments, 1))
    return {"positions": places - first, "attention_mask": ops.logical_and(same, causal)}
