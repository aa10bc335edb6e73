"""Test GPTQ rounding to 4 bits: values on the quantizer's grid, and smaller output errors."""

import numpy as np
import pytest

from keras_llm.export.litert.quantization import gptq


def slow_gptq(matrix, moments, block):
    """Run GPTQ one weight at a time.

    After each column, a linear system is solved again, instead of using a Cholesky factor.
    """
    rounded, remaining_costs, max_step = np.zeros(matrix.shape), [], 7
    for j in range(matrix.shape[1]):
        # The cost of an error in column j after the following columns compensate for it.
        rest = slice(j + 1, None)
        solved = np.linalg.solve(moments[rest, rest], moments[rest, j])
        remaining_costs.append(moments[j, j] - moments[j, rest] @ solved)
    for row, weights in enumerate(matrix.astype("float64")):
        weights = weights.copy()
        for j in range(len(weights)):
            if j % block == 0:
                part = weights[j : j + block]
                largest = np.abs(part).argmax()
                sign = np.sign(part[largest])
                costs = []
                for clipped in gptq._CLIPPED:
                    scale = clipped * np.abs(part[largest : largest + 1]) / max_step
                    scale = gptq._as_stored(scale)[0]
                    error = part - scale * np.clip(np.rint(part / scale), -max_step, max_step)
                    costs.append(
                        (np.sum(remaining_costs[j : j + block] * error**2), -clipped, scale)
                    )
                scale = min(costs)[2]
            steps = np.clip(np.rint(weights[j] / scale), -max_step, max_step)
            rounded[row, j] = scale * (max_step * sign if j % block == largest else steps)
            error, rest = weights[j] - rounded[row, j], slice(j + 1, None)
            if j + 1 < len(weights):
                weights[rest] += error * np.linalg.solve(moments[rest, rest], moments[rest, j])
    return rounded


@pytest.fixture
def layer():
    """Return a matrix (12, 96) and inputs (400, 96) with correlated channels."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 96)).astype("float32")
    x = rng.normal(size=(400, 16)) @ rng.normal(size=(16, 96)) + 0.3 * rng.normal(size=(400, 96))
    return matrix, x


@pytest.mark.parametrize("block", [16, 96])
def test_on_grid_matches_slow_gptq(layer, block):
    matrix, x = layer
    moments = x.T @ x
    moments[np.diag_indices(96)] += 0.01 * np.mean(np.diag(moments))
    rounded = gptq.on_grid(matrix, gptq.factor_of(x.T @ x), block)
    np.testing.assert_allclose(rounded, slow_gptq(matrix, moments, block), atol=1e-6)


def test_values_are_on_grid_with_smaller_errors(layer):
    matrix, x = layer
    rounded = gptq.on_grid(matrix, gptq.factor_of(x.T @ x), 32)
    blocks = rounded.reshape(12, 3, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 7
    np.testing.assert_array_equal(blocks, np.rint(blocks / scale) * scale)
    nearest = matrix.reshape(12, 3, 32)
    step = np.abs(nearest).max(-1, keepdims=True) / 7
    nearest = (np.rint(nearest / step) * step).reshape(12, 96)
    gptq_error, nearest_error = (np.mean((x @ (w - matrix).T) ** 2) for w in (rounded, nearest))
    assert gptq_error < 0.5 * nearest_error


def test_zero_rows_stay_zero(layer):
    matrix, x = layer
    matrix[3] = 0
    assert not gptq.on_grid(matrix, gptq.factor_of(x.T @ x), 32)[3].any()
