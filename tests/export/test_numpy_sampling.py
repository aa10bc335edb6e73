"""Test that sampling with NumPy chooses the same tokens as with Keras."""

import itertools

import numpy as np
import pytest

from keras_llm import generation
from keras_llm.errors import InputError
from keras_llm.export.sampling import Sampling, choose, gumbel_noise
from keras_llm.generation import sampling as keras_sampling

SETTINGS = list(
    itertools.product(
        [0.0, 0.7, 1.3], [0, 1, 5], [1.0, 0.5, 0.9], [0.0, 0.05, 0.3], [0, -7, 2**31 - 1]
    )
)


def test_all_settings_match_keras():
    random = np.random.default_rng(0)
    for step, settings in enumerate(SETTINGS):
        logits = random.normal(0, 3, 61).astype("float32")
        logits[random.integers(61)] = logits.max()  # a tie
        sampling = Sampling(*settings)
        theirs = generation.Sampling(**sampling._asdict()).tensors()
        expected = int(keras_sampling.choose(logits[None], theirs, step)[0])
        assert choose(logits, sampling, step) == expected, settings


def test_gumbel_noise_matches_keras():
    for seed, step in [(0, 0), (-1, 3), (123456789, 2000)]:
        ours = gumbel_noise(seed, step, 5000)
        theirs = np.asarray(keras_sampling.gumbel_noise(np.array([seed], "int32"), step, 5000))[0]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("min_p", 1.1),
        ("seed", 2**31),
    ],
)
def test_invalid_settings_raise_error(name, value):
    with pytest.raises(InputError, match=f"`{name}`"):
        Sampling(**{name: value}).validate()


def test_noise_is_finite_for_largest_hash():
    """One of 2**24 hashes rounds to a uniform number of 1; this seed and token have it."""
    theirs = np.asarray(keras_sampling.gumbel_noise(np.array([6], "int32"), 29, 37169))[0]
    for noise in (gumbel_noise(6, 29, 37169), theirs):
        assert noise.argmax() == 37168 and 16 < noise[37168] < 17
        assert np.isfinite(noise).all()
