"""Test conversations: turns reuse the prefix cache and give the same answers as the full chat."""

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
def chat_task(task):
    chat_task = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": TEMPLATE})
    chat_task._compiled = task._compiled  # reuse the graphs of the same model
    return chat_task


def test_turns_match_full_chat(chat_task):
    conversation = chat_task.conversation("Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for text in ("a class?", "Why?"):
        messages.append({"role": "user", "content": text})
        expected = chat_task.chat(messages, **SETTINGS)
        assert conversation.say(text, **SETTINGS) == expected
        messages.append({"role": "assistant", "content": expected})
        assert conversation.messages == messages
    # The last prompt is cached up to where the last answer may be tokenized differently.
    text = "And a module?"
    prompt = chat_task.tokenizer.encode_prompt(
        chat_task.render([*messages, {"role": "user", "content": text}]), parse_special=True
    )
    num_cached = conversation._prefix_cache.shared(np.array([prompt]), drops_tokens=False)
    assert num_cached > 0.6 * len(prompt)
    assert "".join(conversation.stream(text, **SETTINGS)) == chat_task.chat(
        [*messages, {"role": "user", "content": text}], **SETTINGS
    )
    assert conversation.messages[-2]["content"] == text


def test_settings_that_the_template_uses_reach_it(task):
    source = "{{ tools }}{% if enable_thinking is false %}<no>{% endif %}" + TEMPLATE
    chat_task = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": source})
    chat_task._compiled = task._compiled
    messages = [{"role": "user", "content": "Why?"}]
    variables = {"enable_thinking": False, "tools": ["f"]}
    prompt = chat_task.render(messages, **variables)
    assert prompt.startswith("['f']<no>")
    expected = chat_task(prompt, parse_special=True, **SETTINGS)
    assert chat_task.chat(messages, **variables, **SETTINGS) == expected
    assert chat_task.conversation().say("Why?", **variables, **SETTINGS) == expected
    assert "".join(chat_task.stream_chat("Why?", **variables, **SETTINGS)) == expected
    for call in (chat_task.chat, chat_task.stream_chat, chat_task.conversation().say):
        with pytest.raises(
            InputError, match=r"unknown setting `thinking`; known: .*enable_thinking"
        ):
            call("Why?", thinking=False)


def test_failed_or_abandoned_turn_keeps_conversation(chat_task):
    conversation = chat_task.conversation()
    conversation.say("Hi", **SETTINGS)
    messages = list(conversation.messages)
    with pytest.raises(InputError, match="top_p"):
        conversation.say("Why?", top_p=0.0)
    with pytest.raises(InputError, match="max_length"):
        conversation.say("Why? " * 2000)
    next(iter(conversation.stream("Why?", max_new_tokens=5, min_new_tokens=4, seed=1)))
    assert conversation.messages == messages
    assert conversation.say("Why?", **SETTINGS) == chat_task.chat(
        [*messages, {"role": "user", "content": "Why?"}], **SETTINGS
    )
    with pytest.raises(InputError, match="`text`"):
        conversation.say("")


@pytest.mark.parametrize("name", ["llama-tiny", "gemma3-tiny"])
def test_prefix_cache_does_not_change_text(name, task):
    """Also test a windowed layer, whose cache has dropped the beginning."""
    size = task.model.config.vocabulary_size
    drops_tokens = name == "gemma3-tiny"
    options = {"sliding_window": 5} if drops_tokens else {"num_layers": 1, "tie_embeddings": False}
    config = models.preset(name, vocabulary_size=size, initializer_range=0.3, **options)
    tok = task.tokenizer
    model = models.causal_lm(config)
    compiled = CompiledGenerator(model, tok.eos_id, tok.pad_id, jit_compile=False)
    compiled_with_xla = CompiledGenerator(model, tok.eos_id, tok.pad_id, jit_compile=True)
    cache, xla_cache = PrefixCache(), PrefixCache()
    rng = np.random.default_rng(0)
    row = rng.integers(300, size, 21).astype("int32")
    texts = [row[:9], row[:20], row, np.append(row[:7], row[12:]), row[:3]]
    shared = []
    for i, ids in enumerate(texts):
        arguments = ids[None], np.array([len(ids)]), np.array([6], "int32")
        shared.append(cache.shared(ids[None], drops_tokens=drops_tokens))
        expected = compiled.generate(*arguments, Sampling(0.9, seed=5))
        actual = compiled.generate(*arguments, Sampling(0.9, seed=5), prefix_cache=cache)
        np.testing.assert_array_equal(actual.token_ids, expected.token_ids)
        assert cache.token_ids[: len(ids)] == ids.tolist()
        if (
            i < 2 and not drops_tokens
        ):  # XLA compiles for each text; the second needs a larger cache
            actual = compiled_with_xla.generate(
                *arguments, Sampling(0.9, seed=5), prefix_cache=xla_cache
            )
            np.testing.assert_array_equal(actual.token_ids, expected.token_ids)
            assert xla_cache.token_ids == cache.token_ids
    # New tokens differ from the row's, so at most the previous prompt is shared.
    assert shared == ([0, 0, 0, 0, 0] if drops_tokens else [0, 9, 20, 7, 2])


def test_conversation_without_template_raises_error(task):
    with pytest.raises(InputError, match="no chat template"):
        task.conversation()
