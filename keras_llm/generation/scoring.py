"""Compute the log-probabilities of given texts."""

from keras import ops

from keras_llm import models
from keras_llm.types import Tensor


def score(model: models.CausalLM, token_ids: Tensor, lengths: Tensor) -> Tensor:
    """Compute the log-likelihood of texts.

    Args:
        model: a model from `models.causal_lm`.
        token_ids: int32 tensor (B, T): the begin token, then the text, padded on the right.
        lengths: int32 tensor (B,), tokens of each row, including the begin token.

    Returns:
        Float32 tensor (B,), the sum of the log-probabilities of a row's tokens, each given the
        tokens before it, in nats.
    """
    log_p, *_ = token_log_probabilities(model, token_ids)
    positions = ops.arange(ops.shape(log_p)[1])
    real = positions < ops.expand_dims(ops.cast(lengths, "int32") - 1, 1)
    return ops.sum(ops.where(real, log_p, 0.0), axis=-1)


def token_log_probabilities(
    model: models.CausalLM | models.Seq2Seq,
    token_ids: Tensor,
    source: Tensor | None = None,
    alternatives: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the log-probability of each token and the most likely alternatives.

    Args:
        model: a model from `models.causal_lm`, or from `models.seq2seq` with a `source`.
        token_ids: int32 tensor (B, T).
        source: int32 tensor (B, S), the encoder's token ids.
        alternatives: int. A, the number of alternatives.

    Returns:
        A tuple: float32 (B, T - 1), the log-probability of each token except the first given the
        tokens before it, in nats; int32 (B, T - 1, A), the most likely tokens at each position;
        float32 (B, T - 1, A), their log-probabilities.
    """
    inputs = token_ids[:, :-1]
    logits = model(inputs if source is None else [source, inputs])
    best, ids = ops.top_k(ops.log_softmax(logits, axis=-1), max(alternatives, 1))
    return (
        log_probability(logits, token_ids[:, 1:]),
        ops.cast(ids, "int32")[..., :alternatives],
        best[..., :alternatives],
    )


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute log softmax(logits)[targets] for logits (..., V) and targets (...)."""
    chosen = ops.take_along_axis(logits, ops.expand_dims(targets, -1), axis=-1)
    return ops.squeeze(chosen, -1) - ops.logsumexp(logits, axis=-1)
