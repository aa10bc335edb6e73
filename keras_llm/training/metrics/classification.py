"""Evaluate classifiers: accuracy, macro F1, confusion matrix and calibration error."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm.errors import InputError
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class CalibrationError(keras.metrics.Metric):
    """Expected calibration error: the mean gap between confidence and accuracy.

    `sum over bins of |bin| / N * |accuracy(bin) - confidence(bin)|`. The confidence of a row is
    the probability of its most likely class. Bins have equal width in (0, 1].

    Args:
        num_bins: int > 0.
        from_logits: bool. Whether predictions are logits instead of probabilities.
        name: name in logs.

    Call arguments of `update_state`:
        y_true: int tensor (B,), the true classes.
        y_pred: float tensor (B, C).

    Reference:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", eq. 3.
    """

    def __init__(
        self,
        num_bins: int = 15,
        from_logits: bool = False,
        name: str = "calibration_error",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.num_bins, self.from_logits = num_bins, from_logits
        self.sums = [
            self.add_variable((num_bins,), "zeros", name=part)
            for part in ("count", "right", "confidence")
        ]

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        y_pred = ops.cast(y_pred, self.dtype)
        if self.from_logits:
            y_pred = ops.softmax(y_pred, axis=-1)
        confidence = ops.max(y_pred, axis=-1)
        y_true = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        right = ops.equal(ops.cast(ops.argmax(y_pred, axis=-1), "int32"), y_true)
        index = ops.cast(ops.ceil(confidence * self.num_bins), "int32") - 1
        bins = ops.one_hot(ops.clip(index, 0, self.num_bins - 1), self.num_bins, dtype=self.dtype)
        if sample_weight is not None:
            bins = bins * ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
        values = (ops.ones_like(confidence), ops.cast(right, self.dtype), confidence)
        for total, value in zip(self.sums, values, strict=True):
            total.assign_add(ops.sum(bins * ops.expand_dims(value, -1), axis=0))

    def result(self) -> Tensor:
        count, right, confidence = (ops.convert_to_tensor(total) for total in self.sums)
        return ops.sum(ops.abs(right - confidence)) / ops.maximum(ops.sum(count), 1.0)

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "num_bins": self.num_bins,
            "from_logits": self.from_logits,
        }


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> np.ndarray:
    """Return the confusion matrix, an int array (C, C): rows are labels, columns predictions."""
    counts = np.zeros((num_classes, num_classes), "int64")
    np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
    return counts


def evaluate_classifier(
    labels: Tensor, probabilities: Tensor, num_bins: int = 15
) -> dict[str, float]:
    """Evaluate a classifier on labeled rows.

    Args:
        labels: int array (N,), the true classes.
        probabilities: float array (N, C).
        num_bins: int > 0, number of bins of the calibration error.

    Returns:
        A dict: `rows` (count), `accuracy`, `macro_f1` (2 tp / (2 tp + fp + fn), averaged over the
        classes that occur in labels or predictions), `calibration_error` (see `CalibrationError`)
        and `nats_per_row`, the mean cross-entropy.

    Raises:
        InputError: if there are no rows, or `labels` and `probabilities` differ in length.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, "float64")
    if labels.ndim != 1 or not len(labels) or len(labels) != len(probabilities):
        raise InputError(
            "evaluate_classifier: `labels` and `probabilities` must have the same number of rows, "
            f"at least 1; got shapes {labels.shape} and {probabilities.shape}."
        )
    counts = confusion_matrix(labels, probabilities.argmax(axis=-1), probabilities.shape[1])
    hits, totals = np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1)
    calibration = CalibrationError(num_bins)
    calibration.update_state(labels, probabilities)
    likely = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)
    return {
        "rows": len(labels),
        "accuracy": float(hits.sum() / len(labels)),
        "macro_f1": float((2 * hits / np.maximum(totals, 1))[totals > 0].mean()),
        "calibration_error": float(calibration.result()),
        "nats_per_row": float(-np.log(likely).mean()),
    }
