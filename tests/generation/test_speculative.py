"""Speculative decoding: the text of slow greedy decoding, whatever proposes."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation.search.speculative import prompt_lookup_generate, speculative_generate

V, PAD = 9, 0
ROWS, WIDTH, CAPACITY, K = 3, 7, 14, 4

# What makes caches and positions differ: windows in some layers and in all, with sinks; positions
# that are rotated, learned, and a bias that all layers share; experts.
CONFIGS = {
    "gemma": ("gemma3-tiny", {"sliding_window": 4, "window_pattern": "SL"}),
    "sinks": ("mistral-tiny", {"sliding_window": 3, "num_sink_tokens": 2}),
    "learned": ("gpt-tiny", {}),
    "shared bias": ("lamda-tiny", {"sliding_window": 4}),
    "experts": ("mixtral-tiny", {}),
}


@functools.cache
def model_of(name, seed=0, max_length=24):
    """A draft, which has a seed of its own, has one layer, and so has what is alike in all."""
    keras.utils.set_random_seed(seed)
    preset, options = CONFIGS[name]
    options = {"vocabulary_size": V, "max_length": max_length, "hidden_dim": 16, **options}
    options |= {
        "num_layers": 1 if seed or name in ("sinks", "experts") else 2,
        "num_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_dim": 16,
    }
    # With a tied head a random model says the last token over again.
    options |= {"tie_embeddings": False, "initializer_range": 0.6}
    return models.causal_lm(models.preset(preset, **options))


@functools.cache
def generator(name, draft_seed):
    """Without a seed, prompts are looked up. XLA compiles one program, for all prompts and stop
    tokens; the other graphs are spared it, as it takes longer than they take to run."""
    model = model_of(name)

    def generate(token_ids, lengths, budget, stop_id):
        asked = (token_ids, lengths, budget, K)
        options = {"stop_id": stop_id, "pad_id": PAD, "capacity": CAPACITY}
        if draft_seed is None:
            return prompt_lookup_generate(model, *asked, ngram_size=2, **options)
        return speculative_generate(model, model_of(name, draft_seed), *asked, **options)

    return tf.function(generate, jit_compile=(name, draft_seed) == ("gemma", 1))


def run(name, draft_seed, prompts, budgets, stop_id):
    """The result, checked, and how many tokens each row has."""
    result = generator(name, draft_seed)(*arrays(prompts, budgets), np.int32(stop_id))
    expected, stopped = greedy(name, prompts, budgets, stop_id)
    counts = result.num_tokens.numpy()
    for row, ids in enumerate(expected):
        assert result.token_ids[row, : counts[row]].numpy().tolist() == ids
        assert np.all(result.token_ids[row, counts[row] :] == PAD)
    assert result.stopped.numpy().tolist() == stopped
    assert np.all(result.accepted <= result.proposed)
    return result, counts


def arrays(prompts, budgets):
    token_ids = np.full((ROWS, WIDTH), PAD, "int32")
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
    return token_ids, np.array([len(p) for p in prompts], "int32"), np.array(budgets, "int32")


@functools.cache
def whole(name):
    model = model_of(name)
    return tf.function(lambda token_ids: model(token_ids))


def greedy(name, prompts, budgets, stop_id, max_length=24):
    """Without a cache: the whole text read again for each token."""
    texts = [list(prompt) for prompt in prompts]
    stopped = [False] * len(texts)
    for _ in range(max(budgets)):
        padded = np.zeros((ROWS, max_length), "int32")
        for row, text in enumerate(texts):
            padded[row, : len(text)] = text
        logits = whole(name)(padded).numpy()
        for row, text in enumerate(texts):
            limit = min(len(prompts[row]) + budgets[row], max_length)
            if not stopped[row] and len(text) < limit:
                token = int(logits[row, len(text) - 1].argmax())
                stopped[row] = token == stop_id
                text += [token] * (token != stop_id)
    return [text[len(p) :] for text, p in zip(texts, prompts, strict=True)], stopped


prompt = st.lists(st.integers(0, V - 1), min_size=1, max_size=WIDTH)
rows = {"min_size": ROWS, "max_size": ROWS}


@settings(max_examples=60)
@given(
    st.sampled_from([None, 1]),
    st.lists(prompt, **rows),
    st.lists(st.integers(1, CAPACITY), **rows),
    st.integers(-1, V - 1),
)
@example(1, [[1], [2], [3]], [1, 2, CAPACITY], -1)
def test_text_is_that_of_greedy_decoding(draft_seed, prompts, budgets, stop_id):
    """Unrelated drafts and looked-up ones, on a model with windows."""
    run("gemma", draft_seed, prompts, budgets, stop_id)


@pytest.mark.parametrize("name", ["gemma", "sinks", "shared bias", "experts"])
def test_every_kind_of_cache(name):
    """Past the window several times over, with proposals refused on the way."""
    rng = np.random.default_rng(3)
    proposed = accepted = 0
    for _ in range(2):
        prompts = [rng.integers(0, V, n).tolist() for n in rng.integers(1, WIDTH + 1, ROWS)]
        result, _ = run(name, 1, prompts, [CAPACITY, 9, 13], stop_id=-1)
        proposed += result.proposed.numpy().sum()
        accepted += result.accepted.numpy().sum()
    assert 0 < accepted < proposed


def test_the_model_itself_as_draft_is_never_refused():
    """So every round gives k + 1 tokens, until the budget ends, here within a draft."""
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6, 5, 3, 5, 8]], [13, 6, 2]
    result, counts = run("gemma", 0, prompts, budgets, stop_id=-1)
    np.testing.assert_array_equal(counts, budgets)
    rounds = -(-np.array(budgets) // (K + 1))
    assert result.rounds == rounds.max()
    np.testing.assert_array_equal(result.proposed, K * rounds)
    np.testing.assert_array_equal(result.accepted, result.proposed)


def test_a_stop_token_within_an_accepted_draft_ends_the_text():
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6]], [12] * ROWS
    texts, _ = greedy("gemma", prompts, budgets, stop_id=-1)
    row, stop_id = next(
        (row, token) for row, text in enumerate(texts) for token in text[1:K] if token != text[0]
    )
    result, counts = run("gemma", 0, prompts, budgets, stop_id)
    assert result.stopped[row] and counts[row] == texts[row].index(stop_id) < K
    assert result.accepted[row] == result.proposed[row] == K


def test_a_repeated_text_is_looked_up():
    """A loop that the model has fallen into is proposed over again, and taken whole."""
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6]], [CAPACITY] * ROWS
    texts, _ = greedy("gemma", prompts, budgets, stop_id=-1)
    prompts = [(p + text)[-WIDTH:] for p, text in zip(prompts, texts, strict=True)]
    result, _ = run("gemma", None, prompts, budgets, stop_id=-1)
    assert result.rounds < CAPACITY
    assert np.all(result.accepted > 0)


def test_nothing_is_proposed_without_an_earlier_occurrence():
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6, 7]], [1] * ROWS
    result, _ = run("gemma", None, prompts, budgets, stop_id=-1)
    np.testing.assert_array_equal(result.proposed, 0)


def test_the_models_length_ends_a_text_and_a_shorter_draft_does_not():
    model, draft = model_of("learned", 0, 12), model_of("learned", 1, 6)
    token_ids, lengths = np.array([[3, 1, 4, 1], [2, 0, 0, 0]], "int32"), np.array([4, 1], "int32")
    result = speculative_generate(
        model, draft, token_ids, lengths, np.array([100], "int32"), 3, -1, PAD
    )
    assert result.token_ids.shape == (2, 11)
    np.testing.assert_array_equal(result.num_tokens, [8, 11])
    for row, length in enumerate(lengths):
        text = np.concatenate([token_ids[row, :length], result.token_ids[row]])[:12]
        np.testing.assert_array_equal(
            text[length:], np.argmax(model(text[None]), axis=-1)[0, length - 1 : -1]
        )


def test_arguments_out_of_range_are_named():
    model = model_of("gemma")
    asked = (np.array([[1]], "int32"), np.array([1], "int32"), np.array([3], "int32"))
    other = models.causal_lm(models.preset("llama-tiny", vocabulary_size=V + 1))
    with pytest.raises(InputError, match=r"`draft` .* vocabulary size 9, got 10"):
        speculative_generate(model, other, *asked, 2, 1, PAD)
    with pytest.raises(InputError, match=r"`num_draft_tokens` .* got 0"):
        speculative_generate(model, model, *asked, 0, 1, PAD)
    with pytest.raises(InputError, match=r"`ngram_size` .* got 1\.5"):
        prompt_lookup_generate(model, *asked, 2, 1.5, 1, PAD)
