"""Evaluate regression: RMSE, mean absolute error, R2, Pearson and Spearman correlation."""

import numpy as np

from keras_llm.errors import InputError
from keras_llm.types import Tensor


def evaluate_regression(truth: Tensor, predicted: Tensor) -> dict[str, float]:
    """Compare predicted values with true values.

    Args:
        truth, predicted: float arrays (N,), N > 1.

    Returns:
        A dict: `rows` (count); `rmse`, the root mean squared error, and `mean_absolute_error`, in
        the units of the values; `r2`, 1 - (squared error) / (squared deviation of `truth` from its
        mean); `pearson` and `spearman`, the correlations of values and of ranks. Metrics that are
        undefined because an array is constant are 0.

    Raises:
        InputError: if there are fewer than two rows, or the arrays differ in length.

    Example:
    >>> evaluate_regression([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])["spearman"]
    1.0
    """
    truth, predicted = np.asarray(truth, "float64"), np.asarray(predicted, "float64")
    if truth.ndim != 1 or len(truth) < 2 or truth.shape != predicted.shape:
        raise InputError(
            "evaluate_regression: `truth` and `predicted` must have the same length, at least 2; "
            f"got shapes {truth.shape} and {predicted.shape}."
        )
    errors = predicted - truth
    spread = np.square(truth - truth.mean()).sum()
    return {
        "rows": len(truth),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "mean_absolute_error": float(np.abs(errors).mean()),
        "r2": float(1 - np.square(errors).sum() / spread) if spread else 0.0,
        "pearson": _correlation(truth, predicted),
        "spearman": spearman(truth, predicted),
    }


def spearman(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation of two float arrays (N,). Ties get their mean rank."""
    return _correlation(_ranks(first), _ranks(second))


def _correlation(first, second):
    if min(np.ptp(first), np.ptp(second)) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values):
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
