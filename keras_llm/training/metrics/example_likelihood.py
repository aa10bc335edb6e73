"""Likelihood of what is learned of texts, such as the answers of a chat."""

import numpy as np

from keras_llm.errors import InputError
from keras_llm.training.metrics.language_model import TokenLosses, measures

_LENGTHS = 32  # rows are padded to multiples of it, so that few shapes are compiled


def evaluate_examples(model, examples, batch_size=16):
    """Likelihood of the learned tokens of examples, each once.

    Args:
        model: a model from `models.causal_lm`.
        examples: list of pairs of token ids and which of them are learned (0 or 1), two lists of
            int (N,), as `data.ChatExample`. The first token of an example never counts.
        batch_size: int > 0.

    Returns:
        A dict: `tokens` (learned), `nats_per_token`, `perplexity`, `accuracy`.

    Raises:
        InputError: if no token is learned.
    """
    nats, right, tokens = 0.0, 0, 0
    for _, losses, correct, learned in _batches(model, examples, batch_size):
        nats += float(np.sum(losses[learned], dtype="float64"))
        right += int(np.sum(correct[learned]))
        tokens += int(np.sum(learned))
    return measures(nats, right, tokens, "evaluate_examples")


def log_probabilities(model, examples, batch_size=16):
    """The log-probability of the learned tokens of each example, in nats.

    Args:
        model, examples, batch_size: as of `evaluate_examples`.

    Returns:
        Float64 array (len(examples),).
    """
    found = np.zeros(len(examples))
    for rows, losses, _, learned in _batches(model, examples, batch_size):
        found[rows] = -np.sum(np.where(learned, losses, 0.0), axis=1, dtype="float64")
    return found


def _batches(model, examples, batch_size):
    """Which examples, and losses, whether right and whether learned, each (B, T)."""
    if not examples:
        raise InputError("there is no example.")
    measure = TokenLosses(model)
    order = np.argsort([len(ids) for ids, _ in examples], kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        longest = 1 + -(-max(len(examples[row][0]) for row in rows) // _LENGTHS) * _LENGTHS
        ids = np.zeros((len(rows), longest), "int32")
        learned = np.zeros((len(rows), longest), bool)
        for place, row in enumerate(rows):
            ids[place, : len(examples[row][0])] = examples[row][0]
            learned[place, : len(examples[row][1])] = examples[row][1]
        losses, correct = measure.predict_on_batch([ids[:, :-1], ids[:, 1:]])
        yield rows, losses, correct, learned[:, 1:]
