"""Compare exported models with the Keras model they were made from.

Each target has a `verify.py` that runs what was written in a process without Keras and compares its
answers by a `Verification`.
"""

import abc
import contextlib
import ctypes
import gc

import numpy as np

from keras_llm.errors import ExportError

NEW_TOKENS = 24
TIMED_TOKENS = 64
LARGE = 300_000_000  # weights; of larger models less is done at a time
_LOGITS = 1 << 23  # of Keras at a time, 32 MiB
SEED_TEXTS = ["The", "I", "In 1984", "def ", "Why?", "\n", "é", "a b"]


def free_memory():
    """Return the memory of freed graphs to the system before another process needs it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


class Verification(abc.ABC):
    """Compares one export with its task."""

    @abc.abstractmethod
    def expect(self):
        """Compute what Keras gives, as far as it does not depend on the export's answer."""

    @abc.abstractmethod
    def compare(self, answer):
        """Compare the export's answer with Keras's.

        Returns:
            A dict for the report.

        Raises:
            ExportError: if they differ.
        """


def probe_prompts(task):
    """Prompts of many lengths in the manner of the model: its own samples."""
    longest = max(1, task.model.config.max_length - NEW_TOKENS - 8)
    step = 6 if task.model.count_params() < LARGE else 2  # sampling takes seconds a token there
    lengths = [min(longest - len(text.encode()), 4 + step * i) for i, text in enumerate(SEED_TEXTS)]
    prompts = [text for text, length in zip(SEED_TEXTS, lengths, strict=True) if length <= 0]
    grown = [(text, length) for text, length in zip(SEED_TEXTS, lengths, strict=True) if length > 0]
    if grown:  # all at once, which compiles once, and then cut to their lengths
        samples = task(
            [text for text, _ in grown],
            max_new_tokens=max(lengths),
            seed=list(range(len(grown))),
            return_details=True,
        )
        for (text, length), sample in zip(grown, samples, strict=True):
            prompts.append(text + task.tokenizer.decode(sample.token_ids[:length]))
    room = task.model.config.max_length - 1
    prompts = [text for text in prompts if len(task.tokenizer.encode(text)) < room]
    if not prompts:
        raise ExportError(f"a model with `max_length` {room + 1} has no room to be tried.")
    return prompts


def batches(rows, length, vocabulary_size):
    """Rows in batches that Keras computes all logits of: in batches of one size, and so with one
    graph.

    Args:
        rows: a list.
        length: int, the tokens of a row with its padding.
        vocabulary_size: int.

    Yields:
        Lists of rows; the last is filled up with its first row.
    """
    size = max(1, min(len(rows), _LOGITS // (length * vocabulary_size)))
    for begin in range(0, len(rows), size):
        batch = rows[begin : begin + size]
        yield batch + batch[:1] * (size - len(batch))


def require_same(name, found, expected, tolerance):
    """The largest absolute difference of two arrays; ExportError if above the tolerance."""
    error = float(np.max(np.abs(np.asarray(found) - np.asarray(expected)), initial=0.0))
    if not error <= tolerance:
        raise ExportError(
            f"{name} of the exported model differ from Keras by {error:.3g}, more than "
            f"{tolerance:.3g}; nothing was written."
        )
    return error


def require_same_texts(found, expected):
    """ExportError naming the first greedy text that differs."""
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            raise ExportError(
                f"greedy text {index} of the exported model is {ours!r}, Keras gives {theirs!r}; "
                "nothing was written."
            )


def greedy(serve, prompts, max_new_tokens):
    """Call a SavedModel's `serving_default` signature for greedy text; its outputs."""
    import tensorflow as tf

    return serve(
        prompt=tf.constant(prompts),
        max_new_tokens=tf.constant([max_new_tokens]),
        temperature=tf.constant([0.0]),
        top_k=tf.constant([0]),
        top_p=tf.constant([1.0]),
        seed=tf.constant([0]),
    )


def log_softmax(logits):
    """Log-probabilities of logits (..., V), in float64."""
    logits = logits.astype("float64") - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def kl_divergence(expected, found):
    """KL(expected | found) of probabilities along the last axis, in nats."""
    p, q = np.asarray(expected, "float64"), np.asarray(found, "float64")
    return np.sum(p * (np.log(np.maximum(p, 1e-30)) - np.log(np.maximum(q, 1e-30))), axis=-1)


def mean_kl_divergence(expected, found):
    """Mean KL(expected | found) in nats over rows of logits (rows, V), one row at a time: a
    vocabulary may have 262,144 tokens."""
    total = 0.0
    for row, other in zip(expected, found, strict=True):
        p, q = log_softmax(row), log_softmax(other)
        total += float(np.sum(np.exp(p) * (p - q)))
    return total / len(expected)
