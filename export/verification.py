"""Compare exported models with the Keras model that they were exported from.

Each target has a `verify.py` that runs the exported model in a process without Keras and compares
its answers with a `Verification`.
"""

import abc
import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_llm.errors import ExportError
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.tasks import TextGeneration

NEW_TOKENS = 24
TIMED_TOKENS = 64
LARGE = 300_000_000  # weights; larger models are verified on less data at a time
_LOGITS = 1 << 23  # Keras logits in memory at a time, 32 MiB
SEED_TEXTS = ["The", "I", "In 1984", "def ", "Why?", "\n", "é", "a b"]


def free_memory() -> None:
    """Return the memory of deleted graphs to the operating system, for other processes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class Verification(abc.ABC):
    """Base class for the comparison of an exported model with its task."""

    @abc.abstractmethod
    def expect(self) -> None:
        """Compute the Keras results that do not depend on the answer of the exported model."""

    @abc.abstractmethod
    def compare(self, answer: Any) -> JSON:
        """Compare the answer of the exported model with the Keras results.

        Returns:
            A dict for the report.

        Raises:
            ExportError: if they differ.
        """


def probe_prompts(task: "TextGeneration") -> list[str]:
    """Return prompts of many lengths, sampled from the model."""
    longest = max(1, task.model.config.max_length - NEW_TOKENS - 8)
    step = 6 if task.model.count_params() < LARGE else 2  # a token of a large model takes seconds
    lengths = [min(longest - len(text.encode()), 4 + step * i) for i, text in enumerate(SEED_TEXTS)]
    prompts = [text for text, length in zip(SEED_TEXTS, lengths, strict=True) if length <= 0]
    grown = [(text, length) for text, length in zip(SEED_TEXTS, lengths, strict=True) if length > 0]
    if grown:  # one batch, which compiles once, then truncated to their lengths
        samples: Any = task(
            [text for text, _ in grown],
            max_new_tokens=max(lengths),
            seed=list(range(len(grown))),
            return_details=True,
        )
        for (text, length), sample in zip(grown, samples, strict=True):
            last = task.tokenizer.encode_prompt(text)[-1]
            new_ids = sample.token_ids[:length]
            prompts.append(text + task.tokenizer.decode_continuation(new_ids, last))
    room = task.model.config.max_length - 1
    prompts = [text for text in prompts if len(task.tokenizer.encode(text)) < room]
    if not prompts:
        raise ExportError(
            f"a `max_length` of {room + 1} is too short to verify the model on any prompt."
        )
    return prompts


def batches(rows: list[Any], length: int, vocabulary_size: int) -> Iterator[list[Any]]:
    """Split rows into batches of equal size, which need a single graph, to compute their logits.

    Args:
        rows: a list.
        length: int. Tokens of a row, including its padding.
        vocabulary_size: int.

    Yields:
        Lists of rows; the last one is padded with copies of its first row.
    """
    size = max(1, min(len(rows), _LOGITS // (length * vocabulary_size)))
    for begin in range(0, len(rows), size):
        batch = rows[begin : begin + size]
        yield batch + batch[:1] * (size - len(batch))


def require_same(name: str, found: Any, expected: Any, tolerance: float) -> float:
    """Return the maximum absolute difference of two arrays.

    Raises:
        ExportError: if it is above the tolerance.
    """
    error = float(np.max(np.abs(np.asarray(found) - np.asarray(expected)), initial=0.0))
    if not error <= tolerance:
        raise ExportError(
            f"{name} of the exported model differ from Keras by {error:.3g}, more than "
            f"{tolerance:.3g}; nothing was written."
        )
    return error


def require_same_texts(found: Iterable[str], expected: Iterable[str]) -> None:
    """Raise ExportError for the first greedy text that differs."""
    for index, (text, reference) in enumerate(zip(found, expected, strict=True)):
        if text != reference:
            raise ExportError(
                f"greedy text {index} of the exported model is {text!r}, but Keras generates "
                f"{reference!r}; nothing was written."
            )


def greedy(serve: Callable[..., Any], prompts: Sequence[str], max_new_tokens: int) -> Any:
    """Call the `serving_default` signature of a SavedModel for greedy text; return its outputs."""
    import tensorflow as tf

    return serve(
        prompt=tf.constant(prompts),
        max_new_tokens=tf.constant([max_new_tokens]),
        temperature=tf.constant([0.0]),
        top_k=tf.constant([0]),
        top_p=tf.constant([1.0]),
        seed=tf.constant([0]),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of logits (..., V), in float64."""
    logits = logits.astype("float64") - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def kl_divergence(expected: Any, found: Any) -> np.ndarray:
    """Return KL(expected | found) of probabilities along the last axis, in nats."""
    p, q = np.asarray(expected, "float64"), np.asarray(found, "float64")
    return np.sum(p * (np.log(np.maximum(p, 1e-30)) - np.log(np.maximum(q, 1e-30))), axis=-1)


def mean_kl_divergence(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the mean KL(expected | found) in nats over rows of logits (rows, V).

    It processes one row at a time, because a vocabulary may have 262,144 tokens.
    """
    total = 0.0
    for row, other in zip(expected, found, strict=True):
        p, q = log_softmax(row), log_softmax(other)
        total += float(np.sum(np.exp(p) * (p - q)))
    return total / len(expected)
