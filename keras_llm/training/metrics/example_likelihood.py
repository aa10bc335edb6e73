"""Evaluate the likelihood of the target tokens of examples, such as the answers of a chat."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_llm.errors import InputError
from keras_llm.training.metrics.language_model import TokenLosses, measures

if TYPE_CHECKING:
    from keras_llm.models import CausalLM

_LENGTHS = 32  # rows are padded to a multiple of this to limit the number of compiled shapes


def evaluate_examples(
    model: "CausalLM", examples: Sequence[tuple[list[int], list[int]]], batch_size: int = 16
) -> dict[str, float]:
    """Evaluate the likelihood of the target tokens of examples.

    Args:
        model: a model from `models.causal_lm`.
        examples: list of pairs of token ids and target flags (1 for tokens that count, else 0),
            two lists of int (N,), such as `data.ChatExample`. The first token of an example never
            counts.
        batch_size: int > 0.

    Returns:
        A dict: `tokens` (number of targets), `nats_per_token`, `perplexity`, `accuracy`.

    Raises:
        InputError: if there are no examples or no target tokens.
    """
    nats, right, tokens = 0.0, 0, 0
    for _, losses, correct, learned in _batches(model, examples, batch_size):
        nats += float(np.sum(losses[learned], dtype="float64"))
        right += int(np.sum(correct[learned]))
        tokens += int(np.sum(learned))
    return measures(nats, right, tokens, "evaluate_examples")


def log_probabilities(
    model: "CausalLM", examples: Sequence[tuple[list[int], list[int]]], batch_size: int = 16
) -> np.ndarray:
    """Return the total log-probability of each example's target tokens, in nats.

    Args:
        model, examples, batch_size: see `evaluate_examples`.

    Returns:
        Float64 array (len(examples),).
    """
    log_p = np.zeros(len(examples))
    for rows, losses, _, learned in _batches(model, examples, batch_size):
        log_p[rows] = -np.sum(np.where(learned, losses, 0.0), axis=1, dtype="float64")
    return log_p


def _batches(model, examples, batch_size):
    """Yield (example indices (B,), losses, correct flags, target flags (B, T)), by length."""
    if not examples:
        raise InputError("`examples` must not be empty.")
    measure = TokenLosses(model)
    order = np.argsort([len(ids) for ids, _ in examples], kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        longest = 1 + -(-max(len(examples[row][0]) for row in rows) // _LENGTHS) * _LENGTHS
        ids = np.zeros((len(rows), longest), "int32")
        learned = np.zeros((len(rows), longest), bool)
        for i, row in enumerate(rows):
            ids[i, : len(examples[row][0])] = examples[row][0]
            learned[i, : len(examples[row][1])] = examples[row][1]
        losses, correct = measure.predict_on_batch([ids[:, :-1], ids[:, 1:]])
        yield rows, losses, correct, learned[:, 1:]
