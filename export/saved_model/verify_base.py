"""The base of the verifications of SavedModels."""

import abc

import numpy as np

from keras_llm.errors import ExportError
from keras_llm.export import verification
from keras_llm.export.litert.lowering.trace import computes_in

TOLERANCE = 1e-3  # of probabilities, and of sums of log-probabilities in nats
_IN_16_BITS = 0.1  # the same of a model that computes in 16 bits: some roundings of a logit near 4
_MOST_DIVERGENCE = 0.05  # of quantised weights: nats of KL divergence, or differences of numbers


class SavedModelVerification(verification.Verification):
    """Compares the answers of signatures with the task's.

    Args:
        task: a task.
        exact: bool. Whether the weights are stored in the model's own precision.
        beam_width: int or None, the width of `beam_search`.

    Attributes:
        in_float32: bool. Whether the model computes in float32 or float64.
    """

    def __init__(self, task, exact=True, beam_width=None):
        self.task, self.exact, self.beam_width = task, exact, beam_width
        self.in_float32 = computes_in(task.model, "float32", "float64")

    @abc.abstractmethod
    def calls(self):
        """Calls of signatures, a list of pairs (signature, inputs)."""

    @abc.abstractmethod
    def timed(self):
        """The call whose time is measured."""

    def warm_up(self):
        """Requests of one row for a server that loads the model: as `calls`."""
        return [self.timed()]

    def speed(self, seconds, outputs):
        """The time of the timed call -> what goes into the report."""
        del outputs
        return {"texts_per_second": round(1 / seconds, 1)}

    def expected_beams(self, texts):
        """What the task finds with so many beams; None without a width."""
        if self.beam_width is None:
            return None
        rows = self.task(
            texts,
            max_new_tokens=verification.NEW_TOKENS,
            beam_width=self.beam_width,
            num_return_sequences=self.beam_width,
            return_details=True,
        )
        return rows if self.beam_width > 1 else [[row] for row in rows]

    def beams(self, field, found, rows):
        """Check `beam_search`: the texts and scores of the task."""
        self.agreement("texts of beams", found[field], [[r.text for r in row] for row in rows])
        scores = [[result.score for result in row] for row in rows]
        return self.number("scores of beams", found["score"], scores)

    def number(self, name, found, expected):
        """The largest difference of numbers, checked."""
        tolerance = TOLERANCE if self.in_float32 else _IN_16_BITS
        tolerance = tolerance if self.exact else np.inf
        return verification.require_same(name, found, expected, tolerance)

    def agreement(self, name, found, expected):
        """The part of rows that are equal; all must be if the weights are exact."""
        equal = [ours == theirs for ours, theirs in zip(found, expected, strict=True)]
        if self.exact and not all(equal):
            index = equal.index(False)
            raise ExportError(
                f"{name} {index} of the exported model is {found[index]!r}, Keras gives "
                f"{expected[index]!r}; nothing was written."
            )
        return float(np.mean(equal))

    def bounded(self, name, divergence):
        """A divergence of quantised weights, checked."""
        if not self.exact and not divergence <= _MOST_DIVERGENCE:
            raise ExportError(
                f"{name} of the model with fewer bits diverge from Keras's by {divergence:.3g}, "
                f"more than {_MOST_DIVERGENCE}; nothing was written."
            )
        return divergence
