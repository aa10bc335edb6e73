"""Sampling and the decode loop against NumPy references and exact properties."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_llm import generation, models
from keras_llm.errors import InputError
from keras_llm.generation.compiled import CompiledGenerator

STOP, PAD = 2, 0


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(5)
    config = models.preset("llama-tiny", vocabulary_size=61, initializer_range=0.5)
    return models.causal_lm(config)


@pytest.fixture(scope="module")
def shallow():
    """A model with one layer, which compiles faster. With a tied head, it would repeat the last
    token."""
    keras.utils.set_random_seed(5)
    config = models.preset(
        "llama-tiny",
        vocabulary_size=61,
        initializer_range=0.5,
        num_layers=1,
        tie_embeddings=False,
    )
    return models.causal_lm(config)


@pytest.fixture(scope="module")
def compiled(shallow):
    """One generator for all tests, so that each bucket of shapes is compiled once."""
    return CompiledGenerator(shallow, STOP, PAD, jit_compile=True)


@pytest.fixture(scope="module")
def traced(shallow):
    """A generator without XLA: one graph for any number of rows."""
    return CompiledGenerator(shallow, STOP, PAD, jit_compile=False)


@pytest.fixture(scope="module")
def endless(shallow):
    """A generator without a stop token."""
    return CompiledGenerator(shallow, -1, PAD, jit_compile=False)


def sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0):
    return generation.Sampling(temperature, top_k, top_p, seed)


def slow_greedy(model, prompt, count):
    """Decode without a cache, with one forward pass over the whole text per token."""
    ids = list(prompt)
    for _ in range(count):
        token = int(np.argmax(np.asarray(model(np.array([ids], "int32")))[0, -1]))
        if token == STOP:
            break
        ids.append(token)
    return ids[len(prompt) :]


def prompts(seed=0, rows=5):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, rows).astype("int32")
    ids = rng.integers(3, 61, (rows, lengths.max())).astype("int32")
    ids[np.arange(ids.shape[1]) >= lengths[:, None]] = PAD
    return ids, lengths


def keep_top_reference(logits, top_k, top_p):
    out = np.full(len(logits), -1e30)
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    p = np.exp(logits[order] - logits[order].max())
    p /= p.sum()
    mass = 0.0
    for index, probability in zip(order, p, strict=True):
        if mass >= top_p:
            break
        out[index] = logits[index]
        mass += probability
    return out


@given(
    st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True),
    st.integers(0, 25),
    st.floats(0.01, 1.0),
)
def test_keep_top_matches_reference(values, top_k, top_p):
    logits = np.array(values, "float32") / 10
    kept = generation.keep_top(
        ops.convert_to_tensor(logits[None]),
        ops.convert_to_tensor([top_k], "int32"),
        ops.convert_to_tensor([top_p], "float32"),
    )
    expected = keep_top_reference(logits.astype("float64"), top_k, top_p)
    p = np.exp(logits - logits.max())
    # A sum within rounding of top_p may fall on either side.
    edge = np.abs(np.cumsum(np.sort(p / p.sum())[::-1]) - top_p).min() < 1e-5
    if not edge:
        np.testing.assert_allclose(np.asarray(kept)[0], expected, rtol=1e-6)


def test_samples_follow_the_distribution():
    logits = np.array([[1.0, 0.0, -1.0, 2.0, 0.5]], "float32")
    settings = sampling(temperature=0.7, seed=11).tensors()
    draws = 4000

    @tf.function
    def chosen():
        return tf.map_fn(lambda step: generation.choose(logits, settings, step)[0], tf.range(draws))

    counts = np.bincount(chosen().numpy(), minlength=5)
    p = np.exp(logits[0] / 0.7)
    expected = draws * p / p.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 dof, p = 0.001


def test_noise_is_gumbel_and_independent_of_seeds_and_steps():
    rows = [
        np.asarray(generation.gumbel_noise(np.array([seed], "int32"), np.int32(step), 4000))[0]
        for seed in (0, 1, -5, 2**31 - 1)
        for step in (0, 1, 2, 1000)
    ]
    noise = np.stack(rows)
    assert abs(noise.mean() - 0.5772) < 0.02
    assert abs(noise.var() - math.pi**2 / 6) < 0.05
    correlation = np.corrcoef(noise) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.08


def test_greedy_decoding_matches_reference(model):
    ids, lengths = prompts()
    state = generation.generate(
        model, ids, lengths, np.array([10], "int32"), sampling().tensors(), STOP, PAD
    )
    for row, (length, count) in enumerate(zip(lengths, state.num_tokens, strict=True)):
        expected = slow_greedy(model, ids[row, :length], 10)
        assert np.asarray(state.token_ids)[row, : int(count)].tolist() == expected
        assert bool(state.stopped[row]) == (len(expected) < 10)


@pytest.mark.parametrize("settings", [sampling(), sampling(0.9, 0, 1.0, 4), sampling(1.3, 9, 0.8)])
def test_rows_are_independent(compiled, traced, settings):
    """The batch runs with XLA, each row alone without."""
    ids, lengths = prompts(3, rows=6)
    budgets = np.array([9, 1, 5, 9, 3, 7], "int32")
    together = compiled.generate(ids, lengths, budgets, settings)
    for row, length in enumerate(lengths):
        alone = traced.generate(
            ids[row : row + 1, :length], lengths[row : row + 1], budgets[row : row + 1], settings
        )
        count = int(alone.num_tokens[0])
        assert count == int(together.num_tokens[row])
        np.testing.assert_array_equal(alone.token_ids[0, :count], together.token_ids[row, :count])
        assert np.all(np.asarray(together.token_ids)[row, count:] == PAD)
        np.testing.assert_allclose(
            alone.log_probability[0], together.log_probability[row], atol=1e-4
        )


def test_settings_apply_per_row(compiled, traced):
    ids, lengths = prompts(1, rows=5)
    rows = [sampling(0.0), sampling(1.0, 5, 0.9, 3), sampling(2.0, 0, 1.0, 8)]
    rows += [sampling(0.7, 3, 1.0, -2), sampling(1.0, 0, 0.5, 3)]
    mixed = generation.Sampling(
        *[
            np.array([getattr(r, f) for r in rows])
            for f in ("temperature", "top_k", "top_p", "seed")
        ]
    )
    together = compiled.generate(ids, lengths, np.array([8], "int32"), mixed)
    for row, settings in enumerate(rows):
        alone = traced.generate(
            ids[row : row + 1], lengths[row : row + 1], np.array([8], "int32"), settings
        )
        np.testing.assert_array_equal(alone.token_ids[0], together.token_ids[row])


@pytest.mark.parametrize("settings", [sampling(), sampling(0.9, 20, 0.9, 4)])
def test_eager_compiled_and_streamed_tokens_are_the_same(shallow, compiled, settings):
    ids, lengths = prompts(2)
    budget = np.array([12], "int32")
    eager = generation.generate(shallow, ids, lengths, budget, settings.tensors(), STOP, PAD)
    np.testing.assert_array_equal(
        eager.token_ids, compiled.generate(ids, lengths, budget, settings).token_ids
    )
    states = list(compiled.stream(ids, lengths, budget, settings))
    np.testing.assert_array_equal(eager.token_ids, states[-1].token_ids)
    for step, state in enumerate(states, 1):
        np.testing.assert_array_equal(state.num_tokens, np.minimum(eager.num_tokens, step))
    assert len(states) == np.max(np.asarray(eager.num_tokens) + np.asarray(eager.stopped))


@pytest.mark.parametrize("jit_compile", [True, False])
def test_one_compilation_serves_all_settings_and_lengths_of_a_bucket(
    shallow, jit_compile, monkeypatch
):
    """Without XLA, one graph serves all buckets. Graphs for XLA are counted but run without it,
    because compiling them takes long."""
    compiled = CompiledGenerator(shallow, STOP, PAD, jit_compile=jit_compile)
    traced, requested = compiled.backend.compiled, []

    def without_xla(model, function, like, jit_compile):
        requested.append(jit_compile)
        return traced(model, function, like, False)

    monkeypatch.setattr(compiled.backend, "compiled", without_xla)
    for index in range(10):
        ids, lengths = prompts(index, rows=3 + index % 2)
        settings = sampling(index / 5, index, 1.0 - index / 20, index)._replace(
            min_p=index / 30,
            typical_p=1.0 - index / 20,
            repetition_penalty=1.0 + index / 9,
            presence_penalty=index / 9,
            no_repeat_ngram_size=index % 3,
            min_new_tokens=index % 4,
        )
        compiled.generate(ids, lengths, np.array([1 + index], "int32"), settings)
        assert compiled.traces == 2  # `start` and `advance_until`
    for index in range(3):
        ids, lengths = prompts(index, rows=1)
        list(compiled.stream(ids, lengths, np.array([1 + index], "int32"), sampling(index / 5)))
        compiled.generate(ids, lengths, np.array([9], "int32"), sampling(index / 5))
    assert compiled.traces == (4 if jit_compile else 2)
    ids = np.full((4, 17), 5, "int32")  # one token more than the smallest bucket
    compiled.generate(ids, np.full(4, 17, "int32"), np.array([3], "int32"), sampling())
    assert compiled.traces == (6 if jit_compile else 2)
    assert requested == [jit_compile] * compiled.traces


def test_samples_of_one_prompt_are_independent(shallow, compiled):
    ids, lengths = prompts(3, rows=2)
    budget = np.array([7], "int32")
    seeds = np.array([4, 5, 6, 7, 4, 5, 6, 7], "int32")
    together = compiled.generate(ids, lengths, budget, sampling(1.0, seed=seeds), samples=4)
    repeated = [np.repeat(x, 4, axis=0) for x in (ids, lengths)]
    alone = compiled.generate(*repeated, budget, sampling(1.0, seed=seeds))
    np.testing.assert_array_equal(together.token_ids, alone.token_ids)
    settings = sampling(1.0, seed=seeds).tensors()
    eager = generation.generate(shallow, ids, lengths, budget, settings, STOP, PAD, samples=4)
    np.testing.assert_array_equal(together.token_ids, eager.token_ids)
    assert len({tuple(row) for row in np.asarray(together.token_ids)[:4].tolist()}) > 1


def test_alternatives_are_the_most_likely_tokens(shallow, endless):
    ids, lengths = prompts(5, rows=2)
    state = endless.generate(ids, lengths, np.array([4], "int32"), sampling(), alternatives=3)
    for row, length in enumerate(lengths):
        whole = np.concatenate([ids[row, :length], np.asarray(state.token_ids)[row]])
        logits = np.asarray(shallow(whole[None]), "float64")[0, length - 1 : -1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        best = np.argsort(-log_p, -1)[:, :3]
        np.testing.assert_array_equal(state.alternative_ids[row], best)
        expected = np.take_along_axis(log_p, best, -1)
        np.testing.assert_allclose(state.alternative_log_probabilities[row], expected, atol=1e-4)
        np.testing.assert_allclose(
            state.token_log_probabilities[row], expected[:, 0], atol=1e-4
        )  # greedy


def test_generation_ends_at_max_length(endless):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 61, (2, 125)).astype("int32")
    lengths = np.array([125, 60], "int32")
    state = endless.generate(ids, lengths, np.array([500], "int32"), sampling())
    np.testing.assert_array_equal(state.num_tokens, [3, 68])
    assert not np.any(state.stopped)


def test_scores_are_sums_of_log_probabilities(model):
    ids, lengths = prompts(4)
    scores = np.asarray(generation.score(model, ids, lengths))
    for row, length in enumerate(lengths):
        logits = np.asarray(model(ids[row : row + 1, :length]), "float64")[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = sum(log_p[t, ids[row, t + 1]] for t in range(length - 1))
        np.testing.assert_allclose(scores[row], expected, atol=1e-3)


def test_log_probability_equals_score_of_generated_tokens(compiled):
    ids, lengths = prompts(6)
    state = compiled.generate(ids, lengths, np.array([7], "int32"), sampling(1.0, 5, 0.9, 2))
    for row, length in enumerate(lengths):
        count = int(state.num_tokens[row])
        whole = np.concatenate([ids[row, :length], np.asarray(state.token_ids)[row, :count]])
        score = compiled.score(whole[None], np.array([len(whole)], "int32"))[0]
        prompt = compiled.score(ids[row : row + 1, :length], lengths[row : row + 1])[0]
        np.testing.assert_allclose(state.log_probability[row], score - prompt, atol=1e-3)


@pytest.mark.parametrize(
    "settings, name",
    [
        (sampling(temperature=-0.1), "temperature"),
        (sampling(temperature=float("nan")), "temperature"),
        (sampling(temperature=float("inf")), "temperature"),
        (sampling(top_k=-1), "top_k"),
        (sampling(top_p=0.0), "top_p"),
        (sampling(top_p=1.1), "top_p"),
        (sampling(seed=2**40), "seed"),
    ],
)
def test_settings_out_of_range_raise(settings, name):
    with pytest.raises(InputError, match=f"`{name}`"):
        settings.validate()
