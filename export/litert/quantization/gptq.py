"""Quantize weights to 4 bits with GPTQ.

A matrix W is rounded column by column. The columns that are not yet rounded compensate for the
error that column j causes in W X: with U the upper Cholesky factor of the inverse of X X^T,

    e = (W_j - round(W_j)) / U_jj,    W_k -= e U_jk for k > j.

The weights stay float32 but are on the quantization grid that the quantizer then finds, because the
largest weight of a block has the largest step. The scale of a block is chosen from a few that clip
its largest weights: the one with the smallest squared error, that of each column divided by U_jj^2.

Reference:
    Frantar et al., 2022, "GPTQ", algorithm 1, with the columns in their original order.
"""

import ml_dtypes
import numpy as np

DAMPING = 0.01  # relative to the mean of the diagonal
_MOST = 7  # largest step, positive or negative
_COLUMNS = 64  # columns that are updated among themselves before the rest is updated
_CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # clipping thresholds, relative to the largest weight


def on_grid(matrix: np.ndarray, factor: np.ndarray, block: int) -> np.ndarray:
    """Round a matrix to integer multiples, -7 .. 7, of the scale of each block.

    Args:
        matrix: float (out, in).
        factor: float (in, in), the upper Cholesky factor of the inverse of the inputs' second
            moments.
        block: int that divides the width. Number of weights of a row that share a scale.

    Returns:
        Float32 (out, in).
    """
    work, rounded = matrix.astype("float64"), np.empty_like(matrix, "float32")
    rows, columns = np.arange(len(work)), min(block, _COLUMNS)
    for begin in range(0, work.shape[1], columns):
        if begin % block == 0:
            whole = work[:, begin : begin + block]
            largest = np.abs(whole).argmax(1)
            signs = np.sign(whole[rows, largest])
            scale = _scale(whole, np.diag(factor)[begin : begin + block])
        end = min(begin + columns, begin - begin % block + block)
        part, own = work[:, begin:end].copy(), factor[begin:end, begin:end]
        errors = np.empty_like(part)
        for j in range(end - begin):
            steps = np.clip(np.rint(part[:, j] / scale), -_MOST, _MOST)
            steps = np.where(largest == begin % block + j, _MOST * signs, steps)
            rounded[:, begin + j] = steps * scale
            errors[:, j] = (part[:, j] - steps * scale) / own[j, j]
            part[:, j:] -= np.outer(errors[:, j], own[j, j:])
        work[:, end:] -= errors @ factor[begin:end, end:]
    return rounded


def _scale(block, diagonal):
    """Return the scale of each row of a block with the smallest weighted squared error."""
    best = None
    for clipped in _CLIPPED:
        scale = _as_stored(clipped * np.abs(block).max(1) / _MOST)
        steps = np.clip(np.rint(block / scale[:, None]), -_MOST, _MOST)
        error = np.sum(((block - steps * scale[:, None]) / diagonal) ** 2, axis=1)
        if best is None:
            best, best_scale = error, scale
        best_scale = np.where(error < best, scale, best_scale)
        best = np.minimum(error, best)
    return best_scale


def _as_stored(scale):
    """Round scales like the quantizer; return 1 where all weights are 0."""
    scale = scale.astype("float32").astype(ml_dtypes.bfloat16).astype("float16").astype("float64")
    return np.where(scale == 0, 1.0, scale)


def factor_of(moments: np.ndarray) -> np.ndarray:
    """Return the upper Cholesky factor of the inverse of second moments (in, in)."""
    moments = moments.astype("float64")
    diagonal = np.diag_indices(len(moments))
    moments[diagonal] += DAMPING * np.mean(moments[diagonal]) + np.finfo("float32").tiny
    return np.linalg.cholesky(np.linalg.inv(moments)).T
