"""Compare external SentencePiece models with the sentencepiece library."""

import functools
import io
import pydoc_data.topics

import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.errors import InputError
from keras_llm.tokenizers import sentencepiece_model

LLAMA2 = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
MODEL_OPTIONS = {
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "llama2": LLAMA2,
    "gemma": {
        **LLAMA2,
        "add_dummy_prefix": False,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "user_defined_symbols": ["<mask>", "\n", "\n\n", "<b>"],
        "control_symbols": ["<start_of_turn>"],
    },
}
SPECIAL_CHARACTERS = " \t\n\u2581\ue000abthe\uff46ﬁ½éÅ字🙂\u0301\x00\ufeff\u200b\ufffd"
TEXT = st.text(st.sampled_from(SPECIAL_CHARACTERS)) | st.text(
    st.characters(exclude_categories=["Cs"])
)


@functools.cache
def model(kind):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*pydoc_data.topics.topics.values()][:9]),
        model_writer=writer,
        vocab_size=400,
        minloglevel=2,
        **MODEL_OPTIONS[kind],
    )
    return writer.getvalue()


@functools.cache
def load_both(kind):
    tok = tokenizers.SentencePiece(model(kind), escape=False)
    return tok, sentencepiece.SentencePieceProcessor(model_proto=model(kind))


@pytest.mark.parametrize("kind", MODEL_OPTIONS)
@given(TEXT)
@example("")
@example("  two  leading \n\n\n<mask>a<b> </s>\u2581\u2581x\ue000a")
def test_ids_and_texts_match_sentencepiece(kind, text):
    tok, original = load_both(kind)
    ids = original.encode(text)
    assert tok.encode(text) == ids and tok.encode_batch([text]) == [ids]
    rows = tok.tokenize(tf.constant([text, "the end"]))
    assert rows.to_list() == [ids, original.encode("the end")]
    assert tok.decode(ids) == original.decode(ids)
    assert tok.detokenize(rows).numpy()[0].decode() == original.decode(ids)


def test_missing_special_ids():
    t5, llama2 = load_both("t5")[0], load_both("llama2")[0]
    assert (t5.pad_id, t5.eos_id, t5.unk_id, t5.bos_id, t5.add_bos) == (0, 1, 2, -1, False)
    assert (llama2.unk_id, llama2.bos_id, llama2.eos_id, llama2.add_bos) == (0, 1, 2, True)
    assert llama2.pad_id == llama2.eos_id  # the model has no padding token


def test_special_tokens_are_parsed_only_on_request():
    tok, original = load_both("gemma")
    turn = original.piece_to_id("<start_of_turn>")
    text = "<bos>x<start_of_turn>the end<eos>".replace("bos", "s").replace("eos", "/s")
    assert not {turn, 1, 2} & set(tok.encode(text))
    expected = [2, *original.encode("x"), turn, *original.encode("the end"), 1]
    assert tok.encode(text, parse_special=True) == expected
    assert tok.encode_batch([text], parse_special=True) == [expected]


@pytest.mark.parametrize("kind", MODEL_OPTIONS)
def test_save_load_and_saved_model(kind, tmp_path):
    tok, original = load_both(kind)
    text = "  the \u2581 end"
    tok.save(tmp_path)
    assert tokenizers.load(tmp_path).encode(text) == original.encode(text)
    module = tf.Module()
    module.resources = tok.graph_resources()
    module.again = tf.function(
        lambda strings: tok.detokenize(tok.tokenize(strings)), [tf.TensorSpec([None], tf.string)]
    )
    tf.saved_model.save(module, tmp_path / "module")
    round_trip = tf.saved_model.load(tmp_path / "module").again([text])
    assert round_trip.numpy()[0].decode() == original.decode(original.encode(text))


def test_added_tokens():
    added = {"</s>": 1, "<extra_1>": 400, "<extra_0>": 401}
    tok = tokenizers.SentencePiece(sentencepiece_model.completed(model("t5"), added), escape=False)
    assert tok.vocabulary_size == 402
    assert tok.encode("<extra_0>", parse_special=True) == [401]
    assert tok.encode("<extra_0> the") == load_both("t5")[1].encode("<extra_0> the")
    named = sentencepiece_model.completed(model("gemma"), roles={"pad": "<start_of_turn>"})
    turn = load_both("gemma")[1].piece_to_id("<start_of_turn>")
    assert tokenizers.SentencePiece(named, escape=False).pad_id == turn
    with pytest.raises(InputError, match=r"'<extra_0>' has id 401.*expects 400"):
        sentencepiece_model.completed(model("t5"), {"<extra_0>": 401})


def test_load_folder_of_first_release(tmp_path):
    """Their config.json has no `escape` entry."""
    tok = tokenizers.SentencePiece.train([pydoc_data.topics.topics["assert"]], 300)
    tok.save(tmp_path)
    (tmp_path / "config.json").write_text('{"class": "SentencePiece"}')
    text = "a \u2581 b"
    assert tokenizers.load(tmp_path).encode(text) == tok.encode(text)
    assert tokenizers.load(tmp_path).add_bos


LONG = {
    "own": {"byte_fallback": True, "add_dummy_prefix": False},
    "prefix": {"byte_fallback": True},
    "t5": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
}


@pytest.mark.parametrize("kind", LONG)
def test_long_texts(kind):
    """Scores of long texts add up to more than float32 represents exactly."""
    writer = io.BytesIO()
    texts = [*pydoc_data.topics.topics.values()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[:30]),
        model_writer=writer,
        vocab_size=800,
        minloglevel=2,
        **{
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **LONG[kind],
        },
    )
    rounded = sentencepiece_model.exact(writer.getvalue())
    assert sentencepiece_model.exact(rounded) == rounded
    original = sentencepiece.SentencePieceProcessor(model_proto=rounded)
    tok = tokenizers.SentencePiece(writer.getvalue(), escape=False)
    long = [
        "\n".join(texts)[:150_000],
        *(["".join(f"0x{n * n:x},\n    " for n in range(1000))] if kind != "t5" else []),
        " ==== 0000 ----  " * 1500,
        "",
        "short",
        "字" * 6000 + " a",
    ]
    ids = original.encode(long)
    assert tok.encode_batch(long) == ids == tok.tokenize(long).to_list()
    assert tf.function(tok.tokenize)(tf.constant(long)).to_list() == ids
    graph = [rows.to_list() for rows in tok.tokenize_with_offsets(tf.constant(long))]
    for index, text in enumerate(long):
        expected = tok.encode_with_offsets(text)
        assert (graph[0][index], list(zip(graph[1][index], graph[2][index], strict=True))) == (
            expected
        )
