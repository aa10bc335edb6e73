"""Define the base class of the verifications of SavedModels."""

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_llm.errors import ExportError
from keras_llm.export import verification
from keras_llm.export.litert.lowering.trace import computes_in

if TYPE_CHECKING:
    from keras_llm.tasks import Generation, Task

TOLERANCE = 1e-3  # for probabilities, and for sums of log-probabilities in nats
_IN_16_BITS = 0.1  # the same for a 16-bit model: a few rounding errors of a logit near 4
_MOST_DIVERGENCE = 0.05  # for quantized weights: KL divergence in nats, or difference of numbers


class SavedModelVerification(verification.Verification):
    """Base class for the comparison of the outputs of signatures with those of the task.

    Args:
        task: a task.
        exact: bool. Whether the weights are stored in the model's precision.
        beam_width: int or None. Number of beams of `beam_search`.

    Attributes:
        in_float32: bool. Whether the model computes in float32 or float64.
    """

    def __init__(self, task: "Task", exact: bool = True, beam_width: int | None = None) -> None:
        self.task, self.exact, self.beam_width = task, exact, beam_width
        self.in_float32 = computes_in(task.model, "float32", "float64")

    @abc.abstractmethod
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the calls of signatures to compare, a list of pairs (signature, inputs)."""

    @abc.abstractmethod
    def timed(self) -> tuple[str, dict[str, Any]]:
        """Return the call whose duration is measured, a pair (signature, inputs)."""

    def warm_up(self) -> list[tuple[str, dict[str, Any]]]:
        """Return warm-up calls of one row for a server, in the format of `calls`."""
        return [self.timed()]

    def speed(self, seconds: float, outputs: dict[str, Any]) -> dict[str, float]:
        """Return the report entries for the duration of the timed call."""
        del outputs
        return {"texts_per_second": round(1 / seconds, 1)}

    def expected_beams(self, texts: list[str]) -> "list[list[Generation]] | None":
        """Return the task's beam search results; None if `beam_width` is None."""
        if self.beam_width is None:
            return None
        task: Any = self.task
        rows = task(
            texts,
            max_new_tokens=verification.NEW_TOKENS,
            beam_width=self.beam_width,
            num_return_sequences=self.beam_width,
            return_details=True,
        )
        return rows if self.beam_width > 1 else [[row] for row in rows]

    def beams(self, field: str, found: dict[str, Any], rows: "list[list[Generation]]") -> float:
        """Compare the texts and scores of `beam_search` with those of the task."""
        self.agreement("texts of beams", found[field], [[r.text for r in row] for row in rows])
        scores = [[result.score for result in row] for row in rows]
        return self.number("scores of beams", found["score"], scores)

    def number(self, name: str, found: Any, expected: Any) -> float:
        """Return the maximum difference of numbers; ExportError if above the tolerance."""
        tolerance = TOLERANCE if self.in_float32 else _IN_16_BITS
        tolerance = tolerance if self.exact else np.inf
        return verification.require_same(name, found, expected, tolerance)

    def agreement(self, name: str, found: Sequence[Any], expected: Sequence[Any]) -> float:
        """Return the share of equal rows; ExportError if the weights are exact and one differs."""
        equal = [row == reference for row, reference in zip(found, expected, strict=True)]
        if self.exact and not all(equal):
            index = equal.index(False)
            raise ExportError(
                f"{name} {index} of the exported model is {found[index]!r}, but Keras returns "
                f"{expected[index]!r}; nothing was written."
            )
        return float(np.mean(equal))

    def bounded(self, name: str, divergence: float) -> float:
        """Return a divergence; ExportError if it is too large for quantized weights."""
        if not self.exact and not divergence <= _MOST_DIVERGENCE:
            raise ExportError(
                f"{name} of the model with quantized weights diverge from Keras by "
                f"{divergence:.3g}, more than {_MOST_DIVERGENCE}; nothing was written."
            )
        return divergence
