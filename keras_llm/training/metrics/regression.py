"""Measures of predicted numbers."""

import numpy as np

from keras_llm.errors import InputError


def evaluate_regression(truth, predicted):
    """Measure predicted numbers beside the right ones.

    Args:
        truth, predicted: float arrays (N,), N > 1.

    Returns:
        A dict: `rows`; `rmse`, the root of the mean squared error, and `mean_absolute_error`, in
        the units of the numbers; `r2`, 1 less the squared error over that of the mean of `truth`;
        `pearson` and `spearman`, the correlations of the numbers and of their ranks. What a
        constant makes undefined is 0.

    Raises:
        InputError: if there are less than two rows, or not as many of both.

    Example:
    >>> evaluate_regression([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])["spearman"]
    1.0
    """
    truth, predicted = np.asarray(truth, "float64"), np.asarray(predicted, "float64")
    if truth.ndim != 1 or len(truth) < 2 or truth.shape != predicted.shape:
        raise InputError(
            "evaluate_regression: `truth` and `predicted` must be of the same length, at least 2; "
            f"their shapes are {truth.shape} and {predicted.shape}."
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


def spearman(first, second):
    """The correlation of the ranks of two float arrays (N,), ties having their mean rank."""
    return _correlation(_ranks(first), _ranks(second))


def _correlation(first, second):
    if min(np.ptp(first), np.ptp(second)) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values):
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
