"""Round weights to 4 bits so that later ones make up for what rounding earlier ones changed.

A matrix W is rounded column by column. What column j changes in W X is made up for, as far as it
can be, by the columns not yet rounded: with U the upper Cholesky factor of the inverse of X X^T,

    e = (W_j - round(W_j)) / U_jj,    W_k -= e U_jk for k > j.

The weights stay float32, but lie on the grid that the quantiser then finds, since the largest
weight of a block takes the largest step. The scale of a block is the one, of a few that clip its
largest weights, with the least squared error, each column's divided by U_jj^2.

Reference:
    Frantar et al., 2022, "GPTQ", algorithm 1, with the columns in their own order.
"""

import pathlib

import ml_dtypes
import numpy as np

from keras_llm.export import products

_TOKENS = 4096  # that are read
_DAMPING = 0.01  # of the mean of the diagonal
_MEMORY = 1 << 30  # bytes of second moments at a time
_MOST = 7  # steps of a scale to either side
_COLUMNS = 64  # that are made up for among themselves before the rest is
_CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # parts of a block's largest weight


def gptq(path, block_of, rows, manifest):
    """Put the matrices of a decoder on their grids, in place.

    A matrix stays as it is if fewer tokens are read than it has input channels.

    Args:
        path: a `.tflite` file in float32.
        block_of: function of the name of a product and the matrix's width to how many weights
            share a scale, or None where the matrix is not to be changed.
        rows: lists of token ids that show the activations; of an encoder-decoder of its source.
        manifest: as of `DecoderSteps`.
    """
    path = pathlib.Path(path)
    model = products.load(path)
    known = products.readers(model)
    blocks = {}
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        for _, _, operators in known[signature.signatureKey.decode()]:
            for operator in operators:
                weights = graph.tensors[operator.inputs[1]]
                matrix = int(weights.buffer), tuple(map(int, weights.shape))
                name = graph.tensors[operator.outputs[0]].name.decode()
                blocks[matrix] = block_of(name, matrix[1][1])
    rows = _first(rows, _TOKENS)
    shown = ("encode", f"prefill_{max(manifest['prefill_lengths'])}")
    for some in _parts({name: known[name] for name in shown if name in known}, blocks):
        seen = {}
        for matrices, x in products.activations(path, rows, manifest, some):
            moments, tokens = seen.get(matrices, (0.0, 0))
            seen[matrices] = moments + x.T @ x, tokens + len(x)
        for matrices, (moments, tokens) in seen.items():
            if tokens < len(moments):
                continue
            factor = _factor(moments)
            for matrix in matrices:
                if blocks[matrix]:
                    values = on_grid(products.matrix(model, matrix), factor, blocks[matrix])
                    products.set_matrix(model, matrix, values)
    products.store(model, path)


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
    """Scales as the quantiser rounds them; 1 where all weights are 0."""
    scale = scale.astype("float32").astype(ml_dtypes.bfloat16).astype("float16").astype("float64")
    return np.where(scale == 0, 1.0, scale)


def _factor(moments):
    moments = moments.astype("float64")
    diagonal = np.diag_indices(len(moments))
    moments[diagonal] += _DAMPING * np.mean(moments[diagonal]) + np.finfo("float32").tiny
    return np.linalg.cholesky(np.linalg.inv(moments)).T


def _first(rows, tokens):
    found = []
    for row in rows:
        found.append(row[: tokens - sum(map(len, found))])
    return [row for row in found if row]


def _parts(known, blocks):
    """The products with a matrix to be rounded, as many at a time as `_MEMORY` has room for."""
    part, used = {name: [] for name in known}, 0
    for name, products_of in known.items():
        for reader in products_of:
            width = next(iter(reader[0]))[1][1]
            if not any(blocks[matrix] for matrix in reader[0]):
                continue
            if used and used + 4 * width**2 > _MEMORY:
                yield part
                part, used = {name: [] for name in known}, 0
            part[name].append(reader)
            used += 4 * width**2
    if used:
        yield part
