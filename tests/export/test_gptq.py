"""Rounding to 4 bits: on the quantiser's grid, and closer in what comes out."""

import numpy as np
import pytest

from keras_llm.export.litert.quantization import gptq


def slow(matrix, moments, block):
    """The same a weight at a time, from the inverse alone: what is left is solved anew after each
    column, instead of by a Cholesky factor."""
    rounded, left, most = np.zeros(matrix.shape), [], 7
    for j in range(
        matrix.shape[1]
    ):  # what an error in column j costs after the rest made up for it
        rest = slice(j + 1, None)
        solved = np.linalg.solve(moments[rest, rest], moments[rest, j])
        left.append(moments[j, j] - moments[j, rest] @ solved)
    for row, weights in enumerate(matrix.astype("float64")):
        weights = weights.copy()
        for j in range(len(weights)):
            if j % block == 0:
                part = weights[j : j + block]
                largest = np.abs(part).argmax()
                sign = np.sign(part[largest])
                costs = []
                for clipped in gptq._CLIPPED:
                    scale = clipped * np.abs(part[largest : largest + 1]) / most
                    scale = gptq._as_stored(scale)[0]
                    error = part - scale * np.clip(np.rint(part / scale), -most, most)
                    costs.append((np.sum(left[j : j + block] * error**2), -clipped, scale))
                scale = min(costs)[2]
            steps = np.clip(np.rint(weights[j] / scale), -most, most)
            rounded[row, j] = scale * (most * sign if j % block == largest else steps)
            error, rest = weights[j] - rounded[row, j], slice(j + 1, None)
            if j + 1 < len(weights):
                weights[rest] += error * np.linalg.solve(moments[rest, rest], moments[rest, j])
    return rounded


@pytest.fixture
def layer():
    """A matrix (12, 96) and inputs (400, 96) whose channels go together."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 96)).astype("float32")
    x = rng.normal(size=(400, 16)) @ rng.normal(size=(16, 96)) + 0.3 * rng.normal(size=(400, 96))
    return matrix, x


@pytest.mark.parametrize("block", [16, 96])
def test_it_is_the_plain_algorithm(layer, block):
    matrix, x = layer
    moments = x.T @ x
    moments[np.diag_indices(96)] += 0.01 * np.mean(np.diag(moments))
    found = gptq.on_grid(matrix, gptq.factor_of(x.T @ x), block)
    np.testing.assert_allclose(found, slow(matrix, moments, block), atol=1e-6)


def test_it_lies_on_the_grid_and_comes_closer(layer):
    matrix, x = layer
    found = gptq.on_grid(matrix, gptq.factor_of(x.T @ x), 32)
    blocks = found.reshape(12, 3, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 7
    np.testing.assert_array_equal(blocks, np.rint(blocks / scale) * scale)
    plain = matrix.reshape(12, 3, 32)
    step = np.abs(plain).max(-1, keepdims=True) / 7
    plain = (np.rint(plain / step) * step).reshape(12, 96)
    changed, before = (np.mean((x @ (w - matrix).T) ** 2) for w in (found, plain))
    assert changed < 0.5 * before


def test_rows_of_zeros_stay(layer):
    matrix, x = layer
    matrix[3] = 0
    assert not gptq.on_grid(matrix, gptq.factor_of(x.T @ x), 32)[3].any()
