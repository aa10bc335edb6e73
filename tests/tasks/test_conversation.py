"""Conversations: each turn is read once, and is answered as if all were read anew."""

import numpy as np
import pytest

import keras_llm
from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import Sampling
from keras_llm.generation.compiled import CompiledGenerator
from keras_llm.generation.prefix_cache import PrefixCache

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SETTINGS = {"max_new_tokens": 9, "seed": 2}


@pytest.fixture(scope="module")
def chatty(task):
    chatty = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": TEMPLATE})
    chatty._compiled = task._compiled  # what was traced of the same model
    return chatty


def test_turns_are_answered_as_the_whole_chat_is(chatty):
    conversation = chatty.conversation("Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for text in ("a class?", "Why?"):
        messages.append({"role": "user", "content": text})
        expected = chatty.chat(messages, **SETTINGS)
        assert conversation.say(text, **SETTINGS) == expected
        messages.append({"role": "assistant", "content": expected})
        assert conversation.messages == messages
    # The last prompt was known up to where the last answer may have been cut differently.
    text = "And a module?"
    prompt = chatty.tokenizer.encode_prompt(
        chatty.render([*messages, {"role": "user", "content": text}]), parse_special=True
    )
    known = conversation._prefix_cache.shared(np.array([prompt]), has_rings=False)
    assert known > 0.6 * len(prompt)
    assert "".join(conversation.stream(text, **SETTINGS)) == chatty.chat(
        [*messages, {"role": "user", "content": text}], **SETTINGS
    )
    assert conversation.messages[-2]["content"] == text


def test_a_turn_that_fails_or_is_left_leaves_the_chat_as_it_was(chatty):
    conversation = chatty.conversation()
    conversation.say("Hi", **SETTINGS)
    before = list(conversation.messages)
    with pytest.raises(InputError, match="top_p"):
        conversation.say("Why?", top_p=0.0)
    with pytest.raises(InputError, match="max_length"):
        conversation.say("Why? " * 2000)
    next(iter(conversation.stream("Why?", max_new_tokens=5, min_new_tokens=4, seed=1)))
    assert conversation.messages == before
    assert conversation.say("Why?", **SETTINGS) == chatty.chat(
        [*before, {"role": "user", "content": "Why?"}], **SETTINGS
    )
    with pytest.raises(InputError, match="`text`"):
        conversation.say("")


@pytest.mark.parametrize("name", ["llama-tiny", "gemma3-tiny"])
def test_what_is_known_gives_the_same_text(name, task):
    """Also where a windowed layer has forgotten its beginning."""
    size = task.model.config.vocabulary_size
    has_rings = name == "gemma3-tiny"
    options = {"sliding_window": 5} if has_rings else {"num_layers": 1, "tie_embeddings": False}
    config = models.preset(name, vocabulary_size=size, initializer_range=0.3, **options)
    tok = task.tokenizer
    model = models.causal_lm(config)
    compiled = CompiledGenerator(model, tok.eos_id, tok.pad_id, jit_compile=False)
    by_xla = CompiledGenerator(model, tok.eos_id, tok.pad_id, jit_compile=True)
    known, known_to_xla = PrefixCache(), PrefixCache()
    rng = np.random.default_rng(0)
    row = rng.integers(300, size, 21).astype("int32")
    texts = [row[:9], row[:20], row, np.append(row[:7], row[12:]), row[:3]]
    shared = []
    for i, ids in enumerate(texts):
        arguments = ids[None], np.array([len(ids)]), np.array([6], "int32")
        shared.append(known.shared(ids[None], has_rings=has_rings))
        expected = compiled.generate(*arguments, Sampling(0.9, seed=5))
        found = compiled.generate(*arguments, Sampling(0.9, seed=5), prefix_cache=known)
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        assert known.token_ids[: len(ids)] == ids.tolist()
        if i < 2 and not has_rings:  # XLA compiles each text anew; the second needs a larger cache
            found = by_xla.generate(*arguments, Sampling(0.9, seed=5), prefix_cache=known_to_xla)
            np.testing.assert_array_equal(found.token_ids, expected.token_ids)
            assert known_to_xla.token_ids == known.token_ids
    # New tokens differ from the row's, so at most the prompt before is shared.
    assert shared == ([0, 0, 0, 0, 0] if has_rings else [0, 9, 20, 7, 2])


def test_a_conversation_needs_a_template(task):
    with pytest.raises(InputError, match="no chat template"):
        task.conversation()
