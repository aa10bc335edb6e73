"""Compare regression measures with scikit-learn and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from keras_llm import training
from keras_llm.errors import InputError


@given(st.integers(0, 999), st.integers(3, 60))
def test_measures_match_scikit_learn_and_scipy(seed, rows):
    random = np.random.default_rng(seed)
    truth = random.integers(-4, 5, rows) / 2
    truth[:2] = [-1, 1]
    predicted = truth + random.normal(size=rows)
    measures = training.evaluate_regression(truth, predicted)
    assert measures == {
        "rows": rows,
        "rmse": pytest.approx(metrics.root_mean_squared_error(truth, predicted)),
        "mean_absolute_error": pytest.approx(metrics.mean_absolute_error(truth, predicted)),
        "r2": pytest.approx(metrics.r2_score(truth, predicted)),
        "pearson": pytest.approx(stats.pearsonr(truth, predicted)[0]),
        "spearman": pytest.approx(stats.spearmanr(truth, predicted)[0]),
    }


def test_constant_predictions_have_zero_correlation():
    measures = training.evaluate_regression([1.0, 2.0], [3.0, 3.0])
    assert measures["pearson"] == measures["spearman"] == 0.0 and measures["r2"] == -9.0
    assert training.evaluate_regression([1.0, 1.0], [1.0, 2.0])["r2"] == 0.0


@pytest.mark.parametrize("truth, predicted", [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_invalid_rows_raise_error(truth, predicted):
    with pytest.raises(InputError, match="same length"):
        training.evaluate_regression(truth, predicted)
