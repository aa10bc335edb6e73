"""Sample-and-rank against one generation for each seed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_llm import generation, models
from keras_llm.errors import InputError
from keras_llm.generation.search.ranked import sample_and_rank

STOP, PAD, SIZE = 2, 0, 31
BIAS = 2.0 * (np.arange(SIZE) == STOP).astype("float32")[None]  # so that some texts stop


def build(name="llama-tiny", **options):
    keras.utils.set_random_seed(4)
    sizes = {"vocabulary_size": SIZE, "initializer_range": 0.2}
    config = models.preset(name, **{**sizes, **options})
    return models.seq2seq(config) if name == "t5-tiny" else models.causal_lm(config)


@pytest.fixture(scope="module")
def model():
    return build(num_layers=1)


def prompts():
    ids = np.array([[5, 9, 4, 7], [8, 3, PAD, PAD], [6, 6, 11, PAD]], "int32")
    return ids, np.array([4, 2, 3], "int32")


def one_by_one(model, ids, lengths, settings, count, encoder_cache=None):
    """For each row its texts as (tokens, log-probability, stopped), in the order of the seeds."""
    rows = [[] for _ in lengths]
    for j in range(count):
        state = generation.generate(
            model,
            ids,
            lengths,
            np.array([5], "int32"),
            settings._replace(seed=np.asarray(settings.seed) + j).tensors(),
            STOP,
            PAD,
            encoder_cache=encoder_cache,
        )
        for row, texts in enumerate(rows):
            length = int(state.num_tokens[row])
            tokens = np.asarray(state.token_ids)[row, :length].tolist()
            texts.append((tokens, float(state.log_probability[row]), bool(state.stopped[row])))
    return rows


def check(found, rows, score):
    for row, texts in enumerate(rows):
        scores = [score(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda j: -scores[j])
        for r, j in enumerate(order):
            tokens, log_p, stopped = texts[j]
            padded = tokens + [PAD] * (5 - len(tokens))
            assert np.asarray(found.token_ids)[row, r].tolist() == padded
            assert int(found.num_tokens[row, r]) == len(tokens)
            assert bool(found.stopped[row, r]) == stopped
            np.testing.assert_allclose(found.log_probability[row, r], log_p, atol=1e-4)
            np.testing.assert_allclose(found.score[row, r], scores[j], atol=1e-4)


def mean_log_probability(text):
    tokens, log_p, _ = text
    return log_p / len(tokens) if tokens else -np.inf


SETTINGS = {
    "one for all": generation.Sampling(1.0, seed=11, logit_bias=BIAS),
    "one for each": generation.Sampling(
        np.array([1.0, 0.7, 1.5], "float32"),
        top_k=np.array([0, 8, 3]),
        seed=np.array([1, 200, 30]),
        repetition_penalty=np.array([1.0, 1.3, 2.0], "float32"),
        logit_bias=np.repeat(BIAS, 3, axis=0),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_candidates_are_those_of_their_seeds_by_mean_log_probability(model, name):
    ids, lengths = prompts()
    found = sample_and_rank(model, ids, lengths, 5, 6, SETTINGS[name], STOP, PAD)
    rows = one_by_one(model, ids, lengths, SETTINGS[name], 6)
    assert {text[2] for texts in rows for text in texts} == {True, False}
    assert all(len({str(text[0]) for text in texts}) > 1 for texts in rows)
    check(found, rows, mean_log_probability)


def test_an_empty_text_is_last(model):
    ids, lengths = prompts()
    settings = generation.Sampling(1.0, seed=3, logit_bias=2.5 * BIAS)
    found = sample_and_rank(model, ids, lengths, 5, 6, settings, STOP, PAD)
    empty = np.asarray(found.num_tokens) == 0
    assert np.any(empty) and not np.all(empty)
    assert np.all(np.diff(empty.astype(int), axis=1) >= 0)
    np.testing.assert_array_equal(np.isneginf(np.asarray(found.score)), empty)


def test_a_scorer_of_ones_own_decides(model):
    ids, lengths = prompts()
    settings = SETTINGS["one for all"]

    def lowest_token_sum(texts):
        return -ops.sum(texts.token_ids, axis=-1)

    found = sample_and_rank(model, ids, lengths, 5, 6, settings, STOP, PAD, lowest_token_sum)
    rows = one_by_one(model, ids, lengths, settings, 6)
    check(found, rows, lambda text: -sum(text[0]))


def test_an_encoder_decoder_has_candidates_for_each_source():
    model = build("t5-tiny", start_id=1)
    sources, _ = prompts()
    starts, ones = np.full((3, 1), 1, "int32"), np.ones(3, "int32")
    encoder_cache = models.encode_source(model, sources)
    settings = generation.Sampling(1.5, seed=8)
    found = sample_and_rank(
        model, starts, ones, 5, 4, settings, STOP, PAD, encoder_cache=encoder_cache
    )
    check(found, one_by_one(model, starts, ones, settings, 4, encoder_cache), mean_log_probability)


def test_compiled_candidates_are_the_same():
    model = build("gemma3-tiny", sliding_window=3, num_layers=1)
    settings = SETTINGS["one for all"].tensors()

    def draw(ids, lengths):
        return sample_and_rank(model, ids, lengths, 5, 4, settings, STOP, PAD)

    eager, compiled = draw(*prompts()), tf.function(draw, jit_compile=True)(*prompts())
    for name in ("token_ids", "num_tokens", "stopped"):
        np.testing.assert_array_equal(getattr(eager, name), getattr(compiled, name))
    for name in ("log_probability", "score"):
        np.testing.assert_allclose(getattr(eager, name), getattr(compiled, name), atol=1e-4)


@pytest.mark.parametrize(
    "name, value, rule",
    [
        ("num_candidates", 0, "an int > 0, got 0"),
        ("max_new_tokens", 1.5, "an int > 0, got 1.5"),
        ("scorer", lambda texts: texts.score[0], r"shape \(3, 2\), got \(2,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(model, name, value, rule):
    arguments = {"max_new_tokens": 2, "num_candidates": 2, name: value}
    with pytest.raises(InputError, match=f"sample_and_rank: `{name}` must .*{rule}"):
        sample_and_rank(
            model,
            *prompts(),
            sampling=generation.Sampling(1.0),
            stop_id=STOP,
            pad_id=PAD,
            **arguments,
        )
