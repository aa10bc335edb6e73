"""Measures of classifiers, beside scikit-learn's and a loop written from the definition."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from keras_llm import training
from keras_llm.errors import InputError


def drawn(seed, rows, classes):
    random = np.random.default_rng(seed)
    logits = 2.0 * random.normal(size=(rows, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return random.integers(0, classes, rows), probabilities


def slow_calibration_error(labels, probabilities, num_bins):
    total = 0.0
    for index in range(num_bins):
        low, high = index / num_bins, (index + 1) / num_bins
        inside = [i for i, row in enumerate(probabilities) if low < max(row) <= high]
        right = sum(probabilities[i].argmax() == labels[i] for i in inside)
        total += abs(right - sum(probabilities[i].max() for i in inside))
    return total / len(labels)


@given(st.integers(0, 999), st.integers(1, 60), st.integers(2, 6))
def test_measures_are_those_of_scikit_learn(seed, rows, classes):
    labels, probabilities = drawn(seed, rows, classes)
    predictions = probabilities.argmax(axis=1)
    found = training.evaluate_classifier(labels, probabilities, num_bins=7)
    assert found["rows"] == rows
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert found["macro_f1"] == pytest.approx(
        metrics.f1_score(labels, predictions, average="macro")
    )
    assert found["nats_per_row"] == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=range(classes))
    )
    assert found["calibration_error"] == pytest.approx(
        slow_calibration_error(labels, probabilities, 7), abs=1e-5
    )
    np.testing.assert_array_equal(
        training.confusion_matrix(labels, predictions, classes),
        metrics.confusion_matrix(labels, predictions, labels=range(classes)),
    )


def test_calibration_over_batches_and_weights_is_that_of_the_rows():
    labels, probabilities = drawn(1, 100, 3)
    metric = training.CalibrationError(from_logits=True)
    for begin in range(0, 100, 30):
        part = slice(begin, begin + 30)
        metric.update_state(labels[part, None], np.log(probabilities[part]))
    assert float(metric.result()) == pytest.approx(
        slow_calibration_error(labels, probabilities, 15), abs=1e-5
    )
    again = training.CalibrationError.from_config(metric.get_config())
    again.update_state(labels, np.log(probabilities), sample_weight=np.arange(100) < 40)
    assert float(again.result()) == pytest.approx(
        slow_calibration_error(labels[:40], probabilities[:40], 15), abs=1e-5
    )
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_calibration_is_watched_by_fit():
    model = keras.Sequential([keras.layers.Dense(3)])
    metric = training.CalibrationError(from_logits=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[metric])
    labels, inputs = drawn(2, 32, 3)
    history = model.fit(inputs, labels, verbose=0).history
    assert 0 < history["calibration_error"][0] < 1


def test_nothing_to_measure_is_refused():
    with pytest.raises(InputError, match="same number of rows"):
        training.evaluate_classifier([], np.zeros((0, 2)))
    with pytest.raises(InputError, match=r"\(2,\) and \(1, 2\)"):
        training.evaluate_classifier([0, 1], np.ones((1, 2)))
