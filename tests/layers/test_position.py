"""Compare position layers with keras_nlp and with their formulas."""

import keras_nlp
import numpy as np
import pytest

from keras_llm import layers

X = np.random.default_rng(3).normal(size=(2, 6, 3, 8)).astype("float32")


@pytest.mark.parametrize("start_index", [0, 4])
@pytest.mark.parametrize("scaling_factor", [1.0, 2.0])
def test_rotary_matches_keras_nlp(start_index, scaling_factor):
    arguments = {"max_wavelength": 700, "scaling_factor": scaling_factor}
    np.testing.assert_allclose(
        layers.RotaryEmbedding(**arguments)(X, start_index=start_index),
        keras_nlp.layers.RotaryEmbedding(**arguments)(X, start_index=start_index),
        atol=1e-5,
    )


def test_yarn_matches_keras_nlp():
    ours = layers.RotaryEmbedding(500, layers.YarnScaling(4.0, 64, beta_fast=8.0, beta_slow=2.0))
    theirs = keras_nlp.layers.RotaryEmbedding(
        500,
        scaling_factor=4.0,
        rope_type="yarn",
        original_max_position_embeddings=64,
        beta_fast=8.0,
        beta_slow=2.0,
    )
    np.testing.assert_allclose(ours(X, start_index=90), theirs(X, start_index=90), atol=1e-4)


def test_llama3_scaling_matches_keras_nlp():
    from keras_hub.src.models.llama.llama_rotary_embedding import LlamaRotaryEmbedding

    ours = layers.RotaryEmbedding(500, layers.Llama3Scaling(8.0, 1.0, 4.0, 64))
    theirs = LlamaRotaryEmbedding(
        500,
        frequency_adjustment_factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        pretraining_sequence_length=64,
    )
    np.testing.assert_allclose(ours(X, start_index=90), theirs(X, start_index=90), atol=1e-4)


def test_ntk_scales_longest_and_keeps_shortest_wavelength():
    plain, stretched = layers.Rotary(), layers.NTKScaling(4.0).frequencies(10000.0, 16)[0]
    shortest, longest = (plain.base ** (-2 * i / 16) for i in (0, 7))
    np.testing.assert_allclose(stretched[0], shortest)
    np.testing.assert_allclose(stretched[-1], longest / 4.0)
    assert np.all(np.diff(stretched) < 0)


def test_fraction_rotates_only_first_features():
    part = np.asarray(layers.RotaryEmbedding(fraction=0.5)(X))
    np.testing.assert_array_equal(part[..., 4:], X[..., 4:])
    np.testing.assert_allclose(part[..., :4], layers.RotaryEmbedding()(X[..., :4]), atol=1e-6)


@pytest.mark.parametrize("heads", [1, 4, 6, 8, 12])
def test_causal_alibi_matches_keras_nlp(heads):
    scores = np.random.default_rng(0).normal(size=(2, heads, 5, 5)).astype("float32")
    causal = np.where(np.tril(np.ones((5, 5), bool)), 0.0, -np.inf)

    def probabilities(layer):
        weights = np.exp(np.asarray(layer(scores)) + causal)
        return weights / weights.sum(-1, keepdims=True)

    np.testing.assert_allclose(
        probabilities(layers.AlibiBias(8)), probabilities(keras_nlp.layers.AlibiBias(8)), atol=1e-5
    )


def test_alibi_matches_formula():
    scores = np.zeros((1, 4, 2, 3), "float32")
    rows = np.asarray(layers.AlibiBias(8)(scores, np.array([[4, 9]]), np.array([1, 4, 9])))
    distance = np.abs(np.array([[4], [9]]) - np.array([1, 4, 9]))
    for head, slope in enumerate([1 / 4, 1 / 16, 1 / 64, 1 / 256]):
        np.testing.assert_allclose(rows[0, head], -slope * distance)


def test_rotary_positions_are_per_row():
    rotary = layers.RotaryEmbedding()
    rows = np.array([[0, 1, 2, 3, 4, 5], [9, 3, 3, 0, 2, 1]])
    together = np.asarray(rotary(X, positions=rows))
    for row in range(2):
        alone = rotary(X[row : row + 1], positions=rows[row])
        np.testing.assert_allclose(together[row : row + 1], alone, atol=1e-6)


def test_rotary_scores_depend_only_on_distance():
    rotary = layers.RotaryEmbedding()
    q, k = X[:1, :1], X[1:, :1]

    def score(i, j):
        a = np.asarray(rotary(q, positions=np.array([i])))
        b = np.asarray(rotary(k, positions=np.array([j])))
        return (a * b).sum(-1)

    np.testing.assert_allclose(score(3, 1), score(103, 101), atol=1e-3)
    assert not np.allclose(score(3, 1), score(3, 2), atol=1e-3)


@pytest.mark.parametrize("size", [8, 7])
def test_sine_matches_keras_nlp(size):
    x = X[:, :, 0, :size]
    ours, theirs = layers.SinePositionEncoding(300), keras_nlp.layers.SinePositionEncoding(300)
    for start_index in (0, 5):
        np.testing.assert_allclose(
            ours(x, start_index=start_index), theirs(x, start_index=start_index), atol=1e-5
        )


def test_learned_positions_match_keras_nlp():
    x = X[:, :, 0]
    ours, theirs = layers.PositionEmbedding(9), keras_nlp.layers.PositionEmbedding(9)
    ours(x), theirs(x)
    theirs.set_weights(ours.get_weights())
    for start_index in (0, 3):
        np.testing.assert_allclose(
            ours(x, start_index=start_index), theirs(x, start_index=start_index), atol=1e-6
        )
    rows = np.array([[0, 1, 2, 0, 1, 2], [8, 7, 6, 5, 4, 99]])
    table = ours.get_weights()[0]
    np.testing.assert_array_equal(ours(x, positions=rows), table[np.minimum(rows, 8)])


def test_token_and_position_embedding_matches_keras_nlp():
    arguments = {"vocabulary_size": 11, "sequence_length": 6, "embedding_dim": 8}
    ours = layers.TokenAndPositionEmbedding(**arguments)
    theirs = keras_nlp.layers.TokenAndPositionEmbedding(**arguments)
    ids = np.array([[1, 2, 10], [0, 5, 5]])
    ours(ids), theirs(ids)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(ids), theirs(ids), atol=1e-6)
    hidden = np.asarray(ours(ids))
    table = ours.get_weights()[0]
    np.testing.assert_allclose(
        ours.token_embedding(hidden, reverse=True), hidden @ table.T, atol=1e-5
    )
