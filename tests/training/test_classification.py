"""Compare classifier measures with scikit-learn and with a loop written from the definition."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from keras_llm import training
from keras_llm.errors import InputError


def random_predictions(seed, rows, classes):
    random = np.random.default_rng(seed)
    logits = 2.0 * random.normal(size=(rows, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return random.integers(0, classes, rows), probabilities


def slow_calibration_error(labels, probabilities, num_bins):
    total = 0.0
    for index in range(num_bins):
        low, high = index / num_bins, (index + 1) / num_bins
        bin_rows = [i for i, row in enumerate(probabilities) if low < max(row) <= high]
        right = sum(probabilities[i].argmax() == labels[i] for i in bin_rows)
        total += abs(right - sum(probabilities[i].max() for i in bin_rows))
    return total / len(labels)


@given(st.integers(0, 999), st.integers(1, 60), st.integers(2, 6))
def test_measures_match_scikit_learn(seed, rows, classes):
    labels, probabilities = random_predictions(seed, rows, classes)
    predictions = probabilities.argmax(axis=1)
    measures = training.evaluate_classifier(labels, probabilities, num_bins=7)
    assert measures["rows"] == rows
    assert measures["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert measures["macro_f1"] == pytest.approx(
        metrics.f1_score(labels, predictions, average="macro")
    )
    assert measures["nats_per_row"] == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=range(classes))
    )
    assert measures["calibration_error"] == pytest.approx(
        slow_calibration_error(labels, probabilities, 7), abs=1e-5
    )
    np.testing.assert_array_equal(
        training.confusion_matrix(labels, predictions, classes),
        metrics.confusion_matrix(labels, predictions, labels=range(classes)),
    )


def test_calibration_error_over_batches_and_with_weights():
    labels, probabilities = random_predictions(1, 100, 3)
    metric = training.CalibrationError(from_logits=True)
    for begin in range(0, 100, 30):
        part = slice(begin, begin + 30)
        metric.update_state(labels[part, None], np.log(probabilities[part]))
    assert float(metric.result()) == pytest.approx(
        slow_calibration_error(labels, probabilities, 15), abs=1e-5
    )
    restored = training.CalibrationError.from_config(metric.get_config())
    restored.update_state(labels, np.log(probabilities), sample_weight=np.arange(100) < 40)
    assert float(restored.result()) == pytest.approx(
        slow_calibration_error(labels[:40], probabilities[:40], 15), abs=1e-5
    )
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_calibration_error_as_fit_metric():
    model = keras.Sequential([keras.layers.Dense(3)])
    metric = training.CalibrationError(from_logits=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[metric])
    labels, inputs = random_predictions(2, 32, 3)
    history = model.fit(inputs, labels, verbose=0).history
    assert 0 < history["calibration_error"][0] < 1


def test_empty_or_mismatched_inputs_raise_error():
    with pytest.raises(InputError, match="same number of rows"):
        training.evaluate_classifier([], np.zeros((0, 2)))
    with pytest.raises(InputError, match=r"\(2,\) and \(1, 2\)"):
        training.evaluate_classifier([0, 1], np.ones((1, 2)))
