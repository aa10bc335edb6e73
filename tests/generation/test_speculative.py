"""Speculative decoding against greedy decoding without a cache."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_llm import generation, models
from keras_llm.errors import InputError
from keras_llm.generation.search.speculative import prompt_lookup_generate, speculative_generate

V, PAD = 9, 0
ROWS, WIDTH, CAPACITY, K = 3, 7, 14, 4

# Different caches and positions: windows in some layers and in all, with sinks; rotary and learned
# positions and a bias shared by all layers; experts.
CONFIGS = {
    "gemma": ("gemma3-tiny", {"sliding_window": 4, "window_pattern": "SL"}),
    "sinks": ("mistral-tiny", {"sliding_window": 3, "num_sink_tokens": 2}),
    "learned": ("gpt-tiny", {}),
    "shared bias": ("lamda-tiny", {"sliding_window": 4}),
    "experts": ("mixtral-tiny", {}),
}


@functools.cache
def model_of(name, seed=0, max_length=24):
    """Build a model. Drafts (with another seed) and models with equal layers have one."""
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
    # With a tied head, a random model repeats the last token.
    options |= {"tie_embeddings": False, "initializer_range": 0.6}
    return models.causal_lm(models.preset(preset, **options))


@functools.cache
def generator(name, draft_seed):
    """Return a traced function. Without a seed, it uses prompt lookup. Only one of the functions is
    compiled with XLA, because compiling takes longer than running the others."""
    model = model_of(name)

    def generate(token_ids, lengths, budget, stop_id):
        request = generation.make_request(model, token_ids, lengths, budget)
        options = {"stop_id": stop_id, "pad_id": PAD, "capacity": CAPACITY}
        if draft_seed is None:
            return prompt_lookup_generate(model, request, K, ngram_size=2, **options)
        return speculative_generate(model, request, model_of(name, draft_seed), K, **options)

    return tf.function(generate, jit_compile=(name, draft_seed) == ("gemma", 1))


def run(name, draft_seed, prompts, budgets, stop_id):
    """Check and return the result and the number of tokens of each row."""
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
    """Decode without a cache, with one forward pass over the whole text per token."""
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
def test_text_equals_greedy_decoding(draft_seed, prompts, budgets, stop_id):
    """Drafts from an unrelated model and from prompt lookup, for a model with windows."""
    run("gemma", draft_seed, prompts, budgets, stop_id)


@pytest.mark.parametrize("name", ["gemma", "sinks", "shared bias", "experts"])
def test_caches_with_rejected_drafts(name):
    """The texts are several windows long, and some drafts are rejected."""
    rng = np.random.default_rng(3)
    proposed = accepted = 0
    for _ in range(2):
        prompts = [rng.integers(0, V, n).tolist() for n in rng.integers(1, WIDTH + 1, ROWS)]
        result, _ = run(name, 1, prompts, [CAPACITY, 9, 13], stop_id=-1)
        proposed += result.proposed.numpy().sum()
        accepted += result.accepted.numpy().sum()
    assert 0 < accepted < proposed


def test_drafts_of_the_model_itself_are_all_accepted():
    """Every round gives k + 1 tokens until the budget ends, here within a draft."""
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6, 5, 3, 5, 8]], [13, 6, 2]
    result, counts = run("gemma", 0, prompts, budgets, stop_id=-1)
    np.testing.assert_array_equal(counts, budgets)
    rounds = -(-np.array(budgets) // (K + 1))
    assert result.rounds == rounds.max()
    np.testing.assert_array_equal(result.proposed, K * rounds)
    np.testing.assert_array_equal(result.accepted, result.proposed)


def test_stop_token_within_an_accepted_draft_ends_the_text():
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6]], [12] * ROWS
    texts, _ = greedy("gemma", prompts, budgets, stop_id=-1)
    row, stop_id = next(
        (row, token) for row, text in enumerate(texts) for token in text[1:K] if token != text[0]
    )
    result, counts = run("gemma", 0, prompts, budgets, stop_id)
    assert result.stopped[row] and counts[row] == texts[row].index(stop_id) < K
    assert result.accepted[row] == result.proposed[row] == K


def test_prompt_lookup_accepts_drafts_in_repeated_text():
    """A loop that the model repeats is proposed and accepted."""
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6]], [CAPACITY] * ROWS
    texts, _ = greedy("gemma", prompts, budgets, stop_id=-1)
    prompts = [(p + text)[-WIDTH:] for p, text in zip(prompts, texts, strict=True)]
    result, _ = run("gemma", None, prompts, budgets, stop_id=-1)
    assert result.rounds < CAPACITY
    assert np.all(result.accepted > 0)


def test_prompt_lookup_needs_an_earlier_occurrence():
    prompts, budgets = [[3, 1, 4], [1], [5, 2, 6, 7]], [1] * ROWS
    result, _ = run("gemma", None, prompts, budgets, stop_id=-1)
    np.testing.assert_array_equal(result.proposed, 0)


def test_max_length_of_the_model_ends_a_text():
    model, draft = model_of("learned", 0, 12), model_of("learned", 1, 6)
    token_ids, lengths = np.array([[3, 1, 4, 1], [2, 0, 0, 0]], "int32"), np.array([4, 1], "int32")
    request = generation.make_request(model, token_ids, lengths, 100)
    result = speculative_generate(model, request, draft, 3, -1, PAD)
    assert result.token_ids.shape == (2, 11)
    np.testing.assert_array_equal(result.num_tokens, [8, 11])
    for row, length in enumerate(lengths):
        text = np.concatenate([token_ids[row, :length], result.token_ids[row]])[:12]
        np.testing.assert_array_equal(
            text[length:], np.argmax(model(text[None]), axis=-1)[0, length - 1 : -1]
        )


def test_invalid_arguments_raise():
    model = model_of("gemma")
    request = generation.make_request(model, np.array([[1]]), np.array([1]), 3)
    other = models.causal_lm(models.preset("llama-tiny", vocabulary_size=V + 1))
    with pytest.raises(InputError, match=r"`draft` .* vocabulary size 9, got 10"):
        speculative_generate(model, request, other, 2, 1, PAD)
    with pytest.raises(InputError, match=r"`num_draft_tokens` .* got 0"):
        speculative_generate(model, request, model, 0, 1, PAD)
    with pytest.raises(InputError, match=r"`ngram_size` .* got 1\.5"):
        prompt_lookup_generate(model, request, 2, 1.5, 1, PAD)
