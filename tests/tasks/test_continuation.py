"""Test that new text continues the prompt with the space that its first token has."""

import functools
import io

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import models, tasks, tokenizers
from keras_llm.export.litert.runtime.model import LiteRTModel
from keras_llm.export.saved_model.signatures.text_generation import TextGenerationModule
from keras_llm.export.serving.client.stream import stream_tokens

TEXTS = ["the cat sat on the mat", "don't stop. the end é 🙂"] * 20
WORDS = ["the", " cat", " sat", "mat", " ", "  ", "é", "🙂", ".", " don't", "字"]


@functools.cache
def tokenizer(kind):
    if kind == "byte_pair":
        return tokenizers.BytePair.train(TEXTS, 280)
    if kind == "word_piece":
        return tokenizers.WordPiece.train(TEXTS, 120)
    if kind == "own":
        return tokenizers.SentencePiece.train(TEXTS, 290, "bpe")
    options = {
        "llama2": {"remove_extra_whitespaces": False, "model_type": "bpe", "vocab_size": 290},
        "t5": {"normalization_rule_name": "nmt_nfkc", "vocab_size": 275},
    }
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=writer,
        byte_fallback=True,
        minloglevel=2,
        **options["llama2" if kind == "first" else kind],
    )
    prefix = "first" if kind == "first" else None
    return tokenizers.SentencePiece(writer.getvalue(), escape=False, prefix=prefix)


KINDS = ["byte_pair", "word_piece", "own", "llama2", "first", "t5"]


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=8).map("".join), st.data())
def test_parts_join_to_the_decoded_text(kind, text, data):
    tok = tokenizer(kind)
    ids = tok.encode(text)
    if len(ids) < 2:
        return
    cut = data.draw(st.integers(1, len(ids) - 1))
    before, after = ids[:cut], ids[cut:]
    joined = tok.decode(before) + tok.decode_continuation(after, before[-1])
    if "\ufffd" not in joined:
        assert joined == tok.decode(ids)
    pieces = list(tok.decode_stream(after, before[-1]))
    assert "".join(pieces) == tok.decode_continuation(after, before[-1])
    graph = tok.detokenize_continuation(tf.ragged.constant([after, []], tf.int32), before[-1:] * 2)
    assert [t.decode() for t in graph.numpy()] == [tok.decode_continuation(after, before[-1]), ""]


@pytest.mark.parametrize("kind", KINDS)
def test_text_begins_after_special_token(kind):
    tok = tokenizer(kind)
    ids = tok.encode("the cat")
    assert tok.decode_continuation(ids, tok.eos_id) == tok.decode(ids) == "the cat"
    assert not tok.has_text(tok.eos_id) and tok.has_text(ids[0])
    assert tok.decode_continuation(tok.encode_continuation(" sat"), ids[-1]) == " sat"


@pytest.fixture(scope="module")
def task():
    """A random model."""
    tok = tokenizer("llama2")
    config = models.CausalLMConfig(
        vocabulary_size=tok.vocabulary_size,
        num_layers=1,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=16,
        max_length=64,
    )
    return tasks.TextGeneration(models.causal_lm(config), tok)


def test_whole_streamed_and_searched(task):
    pieces = [task.tokenizer.token(index) for index in range(task.tokenizer.vocabulary_size)]
    bias = {next(i for i, piece in enumerate(pieces) if piece[:1] == "\u2581" != piece): 1e4}
    options = {"max_new_tokens": 2, "temperature": 0.0, "logit_bias": bias}
    expected = task.tokenizer.decode_continuation(
        task("the cat", **options, return_details=True).token_ids,
        task.tokenizer.encode("the cat")[-1],
    )
    assert expected.startswith(" ")
    assert task("the cat", **options) == "".join(task.stream("the cat", **options)) == expected
    assert task("the cat", beam_width=2, max_new_tokens=2, logit_bias=bias) == expected
    assert task(["the cat", "mat"], **options)[0] == expected
    assert task("the cat", **options, stop=expected[1:3]) == " "
    # After a special token, a text begins.
    assert task("the cat</s>", **options, parse_special=True) == expected.removeprefix(" ")
    # A constraint is for the new text on its own.
    del options["logit_bias"]
    assert task("the cat", **options, regex="the|sat") in ("the", "sat", "th", "sa", "t", "s")


def test_forced_text(task):
    for forced in (" sat", "sat"):
        text = task("the cat", forced=forced, max_new_tokens=6, seed=1)
        assert text.startswith(forced)


def test_saved_model_client_and_device_file(task):
    tok = task.tokenizer
    functions = TextGenerationModule(task).functions()
    settings = {
        "max_new_tokens": [4],
        "temperature": [0.0],
        "top_k": [0],
        "top_p": [1.0],
        "seed": [1],
    }
    prompts = ["the cat", "mat", "the"]
    expected = task(prompts, max_new_tokens=4, temperature=0.0)
    ids = [r.token_ids for r in task(prompts, 4, temperature=0.0, return_details=True)]
    spec = functions["generate"][1]
    values = {name: tf.constant(value, spec[name].dtype) for name, value in settings.items()}
    outputs = functions["generate"][0](prompt=tf.constant(prompts), **values)
    assert [text.decode() for text in outputs["text"].numpy()] == expected

    def predict(name, inputs):
        function, spec = functions[name]
        inputs = {n: tf.constant(value, spec[n].dtype) for n, value in inputs.items()}
        outputs = {n: value.numpy() for n, value in function(**inputs).items()}
        if "text" in outputs:
            outputs["text"] = [text.decode() for text in outputs["text"]]
        return outputs

    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 1}
    for prompt, text, new_ids in zip(prompts, expected, ids, strict=True):
        assert "".join(stream_tokens(predict, prompt, 4, greedy)) == text
        assert text == tok.decode_continuation(new_ids, tok.encode(prompt)[-1])
        runner = LiteRTModel.__new__(LiteRTModel)
        runner.task, runner.tokenizer = "TextGeneration", tok
        runner.steps = lambda *_, ids=new_ids, **__: iter([*((i, None) for i in ids), (None, None)])
        assert runner.generate(prompt) == "".join(runner.stream(prompt)) == text


def test_settings_that_need_the_prompt(task):
    """Rows of one batch end in text and in special tokens."""
    tok = task.tokenizer
    rows = task(
        ["the cat", "the cat</s>"],
        max_new_tokens=3,
        temperature=0.0,
        parse_special=True,
        return_details=True,
    )
    last = [tok.encode("cat")[-1], tok.eos_id]
    for row, previous in zip(rows, last, strict=True):
        assert row.text == tok.decode_continuation(row.token_ids, previous)
    assert np.all([row.num_tokens == 3 or row.finish_reason == "stop" for row in rows])
