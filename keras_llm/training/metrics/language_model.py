"""Evaluate language models: training metrics, exact likelihoods and unigram baselines."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.training.losses.cross_entropy import ChunkedCrossEntropy
from keras_llm.training.segment_mask import packed_states
from keras_llm.types import JSON, Tensor

_CHUNK = 1 << 22  # tokens


@keras.saving.register_keras_serializable("keras_llm")
class TokenAccuracy(keras.metrics.Mean):
    """The share of target tokens that the model predicts correctly.

    Args:
        ignore_id: int. Targets with this id do not count (padding).
        name: name in logs.

    Call arguments of `update_state`:
        y_true: int tensor (B, T).
        y_pred: float tensor (B, T, V), logits or probabilities.
    """

    def __init__(self, ignore_id: int = 0, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.ignore_id = ignore_id

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        counts = ops.cast(y_true != self.ignore_id, self.dtype)
        if sample_weight is not None:
            counts = counts * ops.cast(sample_weight, self.dtype)
        right = ops.cast(ops.argmax(y_pred, axis=-1), "int32") == ops.cast(y_true, "int32")
        return super().update_state(ops.cast(right, self.dtype), sample_weight=counts)

    def get_config(self) -> JSON:
        return {**super().get_config(), "ignore_id": self.ignore_id}


@keras.saving.register_keras_serializable("keras_llm")
class Perplexity(keras.metrics.Mean):
    """The exponential of the mean cross-entropy of the target tokens; 0 without any.

    `LanguageModelTrainer` does not need this metric: perplexity is the exponential of its loss.

    Args:
        ignore_id: int. Targets with this id do not count (padding).
        from_logits: bool. Whether predictions are logits instead of probabilities.
        name: name in logs.

    Call arguments of `update_state`:
        y_true: int tensor (B, T).
        y_pred: float tensor (B, T, V).
    """

    def __init__(
        self, ignore_id: int = 0, from_logits: bool = True, name: str = "perplexity", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.ignore_id, self.from_logits = ignore_id, from_logits

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        counts = ops.cast(y_true != self.ignore_id, self.dtype)
        if sample_weight is not None:
            counts = counts * ops.cast(sample_weight, self.dtype)
        nats = keras.losses.sparse_categorical_crossentropy(
            y_true, ops.cast(y_pred, self.dtype), from_logits=self.from_logits
        )
        return super().update_state(nats, sample_weight=counts)

    def result(self) -> Tensor:
        return ops.where(self.count > 0, ops.exp(super().result()), 0.0)

    def get_config(self) -> JSON:
        own = {"ignore_id": self.ignore_id, "from_logits": self.from_logits}
        return {**super().get_config(), **own}


def evaluate_language_model(
    model: models.CausalLM,
    token_ids: np.ndarray,
    num_bytes: int | None,
    bos_id: int,
    sequence_length: int,
    batch_size: int = 16,
    segments: bool = False,
) -> dict[str, float]:
    """Evaluate the likelihood of held-out text, counting every token exactly once.

    The stream is split into windows of `sequence_length`; each token is predicted from the tokens
    before it in its window. Begin tokens are not predicted. The result is exact: the last partial
    window counts, and every token has the same weight.

    Args:
        model: a model from `models.causal_lm`.
        token_ids: int array (N,) from `data.encode_documents`.
        num_bytes: int, the UTF-8 size of the documents; None if unknown.
        bos_id: int, the begin token.
        sequence_length: int > 0.
        batch_size: int > 0.
        segments: bool. Whether tokens attend only to their own document, for models trained with
            `data.packed_dataset(segments=True)`.

    Returns:
        A dict: `tokens` (number predicted), `nats_per_token`, `perplexity`, `bits_per_byte` (if
        `num_bytes` is known), `accuracy`.

    Raises:
        InputError: if there is no token to predict.
    """
    if len(token_ids) < 2:
        raise InputError("evaluate_language_model: `token_ids` has no token to predict.")
    measure = TokenLosses(model)
    count = math.ceil((len(token_ids) - 1) / sequence_length)
    stream = np.full(count * sequence_length + 1, bos_id, "int32")  # a begin token never counts
    stream[: len(token_ids)] = token_ids
    inputs = stream[:-1].reshape(count, sequence_length)
    outputs = stream[1:].reshape(count, sequence_length)
    nats, right, tokens = 0.0, 0, 0
    for begin in range(0, count, batch_size):
        x, y = inputs[begin : begin + batch_size], outputs[begin : begin + batch_size]
        segment_inputs = _segments(x == bos_id) if segments else []
        loss, correct = measure.predict_on_batch([x, y, *segment_inputs])
        counts = y != bos_id
        nats += float(np.sum(loss[counts], dtype="float64"))
        right += int(np.sum(correct[counts]))
        tokens += int(np.sum(counts))
    return {**likelihoods(nats, tokens, num_bytes), "accuracy": right / tokens}


class TokenLosses(keras.Model):
    """A model that returns the loss of each target token and whether the prediction is correct.

    Inputs: token ids and targets (B, T), optionally segment ids and positions (B, T). Outputs: two
    float tensors (B, T).
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name="token_losses")
        self.model = model

    def call(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        token_ids, targets, *segment_inputs = inputs
        if segment_inputs:
            states = packed_states(self.model, token_ids, *segment_inputs)
        else:
            states = models.prediction_states(self.model, token_ids)
        head = models.output_head(self.model)
        outputs = ChunkedCrossEntropy(soft_cap=head.soft_cap).token_losses(
            ops.reshape(states, (-1, states.shape[-1])), head.kernel, ops.reshape(targets, (-1,))
        )
        return [ops.reshape(values, ops.shape(targets)) for values in outputs]

    def predict_on_batch(self, x: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for each row once.

        With several replicas, Keras runs every replica on the full batch and concatenates the
        outputs; keep those of the first replica.
        """
        return [values[: len(x[0])] for values in super().predict_on_batch(x)]


def _segments(begins):
    """Return segment ids and positions, int (B, T), from document starts, bool (B, T)."""
    columns = np.broadcast_to(np.arange(begins.shape[1]), begins.shape)
    first = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    return [np.cumsum(begins, axis=1, dtype="int32"), (columns - first).astype("int32")]


def evaluate_unigram(
    train_ids: np.ndarray, token_ids: np.ndarray, num_bytes: int, bos_id: int, vocabulary_size: int
) -> dict[str, float]:
    """Evaluate the unigram baseline with the metrics of `evaluate_language_model`.

    Args:
        train_ids: int array, the training stream. The model is its token counts plus one.
        token_ids, num_bytes, bos_id: see `evaluate_language_model`.
        vocabulary_size: int. V.

    Returns:
        A dict like that of `evaluate_language_model`, without `accuracy`.
    """
    counts = np.ones(vocabulary_size)
    for begin in range(0, len(train_ids), _CHUNK):  # a memory-mapped stream may exceed memory
        part = train_ids[begin : begin + _CHUNK]
        counts += np.bincount(part[part != bos_id], minlength=vocabulary_size)
    log_probability = np.log(counts / counts.sum())
    targets = token_ids[token_ids != bos_id]
    return likelihoods(-float(log_probability[targets].sum()), len(targets), num_bytes)


def likelihoods(nats: float, tokens: int, num_bytes: int | None) -> dict[str, float]:
    """Return a dict of likelihood metrics, from total nats and the counts of tokens and bytes."""
    metrics = {
        "tokens": tokens,
        "nats_per_token": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
    }
    if num_bytes is not None:
        metrics["bits_per_byte"] = nats / math.log(2) / num_bytes
    return metrics


def evaluate_targets(
    model: keras.Model, batches: Iterable[tuple[Any, ...]], ignore_id: int
) -> dict[str, float]:
    """Evaluate the likelihood of the targets of all batches.

    Args:
        model: a `keras.Model` that returns logits (B, M, V).
        batches: iterable of pairs of the model's inputs and int targets (B, M); an optional third
            element, (B, M), is 0 for targets that do not count.
        ignore_id: int. Targets with this id do not count (padding).

    Returns:
        A dict: `tokens` (number of targets), `nats_per_token`, `perplexity`, `accuracy`.

    Raises:
        InputError: if there are no targets.
    """
    nats, right, tokens = 0.0, 0, 0
    for inputs, targets, *weights in batches:
        logits = ops.cast(model(inputs, training=False), "float32")
        loss = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
        targets = ops.convert_to_numpy(targets)
        counts = targets != ignore_id
        for weight in weights:
            counts &= ops.convert_to_numpy(weight) > 0
        nats += float(np.sum(ops.convert_to_numpy(loss)[counts], dtype="float64"))
        right += int(np.sum((ops.convert_to_numpy(ops.argmax(logits, axis=-1)) == targets)[counts]))
        tokens += int(np.sum(counts))
    return measures(nats, right, tokens, "evaluate_targets")


def evaluate_most_frequent(
    train_ids: np.ndarray, targets: np.ndarray, vocabulary_size: int
) -> dict[str, float]:
    """Evaluate the unigram baseline with the metrics of `evaluate_targets`.

    Args:
        train_ids: int array, training tokens. The model is their counts plus one.
        targets: int array (N,), the tokens to predict.
        vocabulary_size: int. V.

    Returns:
        A dict like that of `evaluate_targets`.
    """
    counts = np.bincount(train_ids, minlength=vocabulary_size) + 1.0
    nats = -float(np.log(counts / counts.sum())[targets].sum())
    right = int(np.sum(targets == counts.argmax()))
    return measures(nats, right, len(targets), "evaluate_most_frequent")


def measures(nats: float, right: int, tokens: int, name: str) -> dict[str, float]:
    """Return a dict of metrics from total nats and the counts of correct and target tokens."""
    if not tokens:
        raise InputError(f"{name}: there is no target token.")
    return {
        "tokens": tokens,
        "nats_per_token": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "accuracy": right / tokens,
    }
