"""Round weights to 4 bits so that later ones make up for what rounding earlier ones changed.

A matrix W is rounded column by column. What column j changes in W X is made up for, as far as it
can be, by the columns not yet rounded: with U the upper Cholesky factor of the inverse of X X^T,

    e = (W_j - round(W_j)) / U_jj,    W_k -= e U_jk for k > j.

The weights stay float32, but lie on the grid that the quantizer then finds, since the largest
weight of a block takes the largest step. The scale of a block is the one, of a few that clip its
largest weights, with the least squared error, each column's divided by U_jj^2.

Reference:
    Frantar et al., 2022, "GPTQ", algorithm 1, with the columns in their own order.
"""

import ml_dtypes
import numpy as np

DAMPING = 0.01  # of the mean of the diagonal
_MOST = 7  # steps of a scale to either side
_COLUMNS = 64  # that are made up for among themselves before the rest is
_CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # parts of a block's largest weight


def on_grid(matrix, factor, block):
    """A matrix whose weights are whole steps, at most 7 to either side, of their block's scale.

    Args:
        matrix: float (out, in).
        factor: float (in, in), the upper Cholesky factor of the inverse of the inputs' second
            moments.
        block: int that divides the width, how many weights of a row share a scale.

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
    """The scale of each row of a block."""
    best = None
    for clipped in _CLIPPED:
        scale = _as_stored(clipped * np.abs(block).max(1) / _MOST)
        steps = np.clip(np.rint(block / scale[:, None]), -_MOST, _MOST)
        error = np.sum(((block - steps * scale[:, None]) / diagonal) ** 2, axis=1)
        if best is None:
            best, found = error, scale
        found = np.where(error < best, scale, found)
        best = np.minimum(error, best)
    return found


def _as_stored(scale):
    """Scales as the quantizer rounds them; 1 where all weights are 0."""
    scale = scale.astype("float32").astype(ml_dtypes.bfloat16).astype("float16").astype("float64")
    return np.where(scale == 0, 1.0, scale)


def factor_of(moments):
    """The upper Cholesky factor of the inverse of second moments (in, in), for `on_grid`."""
    moments = moments.astype("float64")
    diagonal = np.diag_indices(len(moments))
    moments[diagonal] += DAMPING * np.mean(moments[diagonal]) + np.finfo("float32").tiny
    return np.linalg.cholesky(np.linalg.inv(moments)).T
