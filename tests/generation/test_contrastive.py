"""Contrastive search against its formula, computed without a cache."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import generation, models
from keras_llm.errors import InputError
from keras_llm.generation.search.contrastive import contrastive_search

STOP, PAD, SIZE = 2, 0, 31
CASES = {
    "llama-tiny": {"num_layers": 1},
    "gemma3-tiny": {"sliding_window": 3},
    "t5-tiny": {"start_id": 1, "num_layers": 1, "num_decoder_layers": 1},
}


def build(name, **options):
    keras.utils.set_random_seed(9)
    sizes = {"vocabulary_size": SIZE, "initializer_range": 0.3}
    config = models.preset(name, **{**sizes, **CASES[name], **options})
    return models.seq2seq(config) if name == "t5-tiny" else models.causal_lm(config)


@pytest.fixture(scope="module", params=CASES)
def model(request):
    return build(request.param)


def prompts(seed=0, rows=3, longest=6):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, rows).astype("int32")
    lengths[0] = longest
    ids = rng.integers(3, SIZE, (rows, longest)).astype("int32")
    ids[np.arange(longest) >= lengths[:, None]] = PAD
    return ids, lengths


def sources(model):
    """Return the encoder's token ids of three rows, or None."""
    if isinstance(model, models.Seq2Seq):
        return np.array([[5, 9, 4, 7], [8, 3, 0, 0], [6, 6, 11, 0]], "int32")
    return None


def encoder_cache(model):
    return None if sources(model) is None else models.encode_source(model, sources(model))


def slow_contrastive(model, prompt, source, count, top_k, alpha, stop=STOP):
    """Apply the formula with one forward pass over the whole text per step and candidate."""
    norm = "final_norm" if source is None else "decoder_final_norm"
    inspected = keras.Model(model.input, [model.get_layer(norm).output, model.output])

    def read(texts):
        rows = np.array(texts, "int32")
        hidden, logits = inspected(
            rows if source is None else [np.repeat(source[None], len(texts), axis=0), rows]
        )
        hidden, logits = np.asarray(hidden, "float64"), np.asarray(logits, "float64")[:, -1]
        p = np.exp(logits - logits.max(-1, keepdims=True))
        norms = np.linalg.norm(hidden, axis=-1, keepdims=True)
        return hidden / norms, p / p.sum(-1, keepdims=True)

    ids, total = list(map(int, prompt)), 0.0
    _, (p,) = read([ids])
    for _ in range(count):
        candidates = np.argsort(-p)[:top_k]
        directions, next_p = read([[*ids, int(token)] for token in candidates])
        similarity = [(each[:-1] @ each[-1]).max() for each in directions]
        best = np.argmax((1 - alpha) * p[candidates] - alpha * np.array(similarity))
        if candidates[best] == stop:
            return ids[len(prompt) :], total, True
        ids.append(int(candidates[best]))
        total += np.log(p[candidates[best]])
        p = next_p[best]
    return ids[len(prompt) :], total, False


def search(model, ids, lengths, count, top_k, alpha, stop=STOP):
    request = generation.make_request(model, ids, lengths, count)
    return contrastive_search(
        model, request, top_k, alpha, stop, PAD, encoder_cache(model), capacity=count
    )


def check(model, ids, lengths, count, top_k, alpha, stop=STOP):
    """Run `contrastive_search`, compare each row with the formula, and return it."""
    text = search(model, ids, lengths, count, top_k, alpha, stop)
    for row, length in enumerate(lengths):
        source = None if sources(model) is None else sources(model)[row]
        budget = min(count, model.config.max_length - length)
        expected, total, stopped = slow_contrastive(
            model, ids[row, :length], source, budget, top_k, alpha, stop
        )
        assert np.asarray(text.token_ids)[row].tolist() == expected + [PAD] * (
            count - len(expected)
        )
        assert int(text.num_tokens[row]) == len(expected)
        assert bool(text.stopped[row]) == stopped
        np.testing.assert_allclose(text.log_probability[row], total, atol=1e-3)
    return text


def test_contrastive_search_matches_the_formula(model):
    ids, lengths = prompts()
    text = check(model, ids, lengths, 7, 4, 0.6, stop=-1)
    assert np.all(np.asarray(text.num_tokens) == 7)
    greedy = search(model, ids, lengths, 7, 1, 0.0, stop=-1)
    assert np.any(np.asarray(greedy.token_ids) != np.asarray(text.token_ids))
    # With one of its own tokens as the stop token, at least this row ends early.
    written = np.asarray(text.token_ids)[1].tolist()
    late = max(written.index(token) for token in set(written))
    text = check(model, ids, lengths, 7, 4, 0.6, stop=written[late])
    assert bool(text.stopped[1]) and int(text.num_tokens[1]) == late


def test_alpha_of_one_takes_the_least_similar_token():
    # Some tokens have a negative similarity to a single token, less than that of an empty slot.
    ids, lengths = prompts(1, longest=1)
    check(build("llama-tiny"), ids, lengths, 3, SIZE, 1.0)


@pytest.mark.parametrize("top_k, alpha", [(1, 0.6), (5, 0.0)])
def test_one_candidate_or_no_penalty_equals_greedy_decoding(model, top_k, alpha):
    ids, lengths = prompts(2)
    greedy = generation.generate(
        model,
        ids,
        lengths,
        np.array([6], "int32"),
        generation.Sampling(0.0).tensors(),
        STOP,
        PAD,
        encoder_cache=encoder_cache(model),
    )
    text = search(model, ids, lengths, 6, top_k, alpha)
    np.testing.assert_array_equal(text.token_ids, greedy.token_ids)
    np.testing.assert_array_equal(text.num_tokens, greedy.num_tokens)
    np.testing.assert_array_equal(text.stopped, greedy.stopped)
    np.testing.assert_allclose(text.log_probability, greedy.log_probability, atol=1e-4)


def test_texts_end_at_max_length():
    ids, lengths = prompts(3)
    model = build("llama-tiny", max_length=8)
    text = check(model, ids, lengths, 5, 3, 0.5, stop=-1)
    np.testing.assert_array_equal(text.num_tokens, np.minimum(5, 8 - lengths))


def test_rows_are_independent():
    model = build("gemma3-tiny")
    ids, lengths = prompts(4, rows=5)
    together = search(model, ids, lengths, 6, 4, 0.6)
    for row, length in enumerate(lengths):
        alone = search(model, ids[row : row + 1, :length], lengths[row : row + 1], 6, 4, 0.6)
        np.testing.assert_array_equal(alone.token_ids[0], together.token_ids[row])
        np.testing.assert_allclose(
            alone.log_probability[0], together.log_probability[row], atol=1e-4
        )


def test_compiled_search_equals_eager():
    model = build("gemma3-tiny", num_layers=1)

    def function(ids, lengths):
        return search(model, ids, lengths, 6, 4, 0.6)

    eager = function(*prompts(5))
    compiled = tf.function(function, jit_compile=True)(*prompts(5))
    for name in ("token_ids", "num_tokens", "stopped"):
        np.testing.assert_array_equal(getattr(eager, name), getattr(compiled, name))
    np.testing.assert_allclose(eager.log_probability, compiled.log_probability, atol=1e-4)


@pytest.mark.parametrize(
    "name, value",
    [
        ("top_k", 0),
        ("top_k", SIZE + 1),
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("alpha", float("nan")),
    ],
)
def test_invalid_arguments_raise(name, value):
    model = build("llama-tiny", num_layers=1)
    request = generation.make_request(model, *prompts(), 3)
    arguments = {"top_k": 4, "alpha": 0.5, name: value}
    with pytest.raises(InputError, match=f"contrastive_search: `{name}` must .*{value}"):
        contrastive_search(model, request, stop_id=STOP, pad_id=PAD, **arguments)
