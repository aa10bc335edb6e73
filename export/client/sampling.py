"""The choice of the next token in NumPy, where a client makes it: that of `generation.choose`.

A client without TensorFlow cannot call that one, which is written for graphs. The numbers are the
same, so a streamed text is the one that the server's `generate` gives for the same seed; a test
holds both together.
"""

import numpy as np

_REMOVED = np.float32(-1e30)


def choose(logits, step, temperature, top_k, top_p, seed):
    """The next token of one row.

    Args:
        logits: float array (1, V).
        step: int, 0 for the first new token.
        temperature, top_k, top_p, seed: as of `generation.Sampling`, numbers.

    Returns:
        Int.
    """
    row = logits[0].astype("float32")
    if temperature == 0:
        return int(row.argmax())
    row = row / np.float32(temperature)
    if top_k or top_p < 1:
        row = _keep_top(row, min(top_k or len(row), len(row)), np.float32(top_p))
    return int((row + gumbel_noise(seed, step, len(row))).argmax())


def _keep_top(row, top_k, top_p):
    ordered = np.sort(row)[::-1][:top_k]
    probabilities = np.exp(ordered - ordered[0])
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    smallest = ordered[before < top_p].min()
    return np.where(row >= smallest, row, _REMOVED)


def gumbel_noise(seed, step, size):
    """Standard Gumbel noise (V,) from a hash of seed, step and token.

    Reference:
        Jarzynski and Olano, 2020, "Hash Functions for GPU Rendering" (pcg3d).
    """
    tokens = np.arange(size, dtype="uint32")
    first = (np.full(size, value % 2**32, "uint32") for value in (seed, step))
    x, y, z = (v * np.uint32(1664525) + np.uint32(1013904223) for v in (*first, tokens))
    x, y, z = _mixed(x, y, z)
    x, y, z = (v ^ (v >> np.uint32(16)) for v in (x, y, z))
    x, _, _ = _mixed(x, y, z)
    uniform = ((x >> np.uint32(8)).astype("float32") + np.float32(0.5)) * np.float32(2.0**-24)
    return -np.log(-np.log(uniform))


def _mixed(x, y, z):
    x = x + y * z
    y = y + z * x
    return x, y, z + x * y
