"""Compare WordPiece ids with the tokenizers library for any Unicode text, in Python and graphs."""

import functools
import itertools
import json
import os
import pydoc_data.topics
import subprocess
import sys
from unicodedata import category

import pytest
import tensorflow as tf
import tokenizers as rust
from hypothesis import example, given
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.errors import InputError

TEXT = """The quick brown fox's jump, unwanted! def f(x):\n\t\treturn  x + 1\r\n
 春眠不觉晓,处处闻啼鸟。  Où est-il ? Straße 🙂 ΣΊΣΥΦΟΣ İstanbul 한국어 हिन्दी"""
SPECIAL_CHARACTERS = (
    " \t\n\x0b\x1c\x85\u2028aéÉ\u017fK\u1e9eİΣ字한각🙂\u0301\u0323\u0345\u034f\u200d.,-¿\x00"
)
# Combining marks of several classes, characters that decompose, and characters newer than
# TensorFlow's Unicode version.
SPECIAL_CHARACTERS += (
    "\u302e\u302f\U0001d165\U0001d16d豈≠\u037e\u1fef\U00016ff0\ufeff\ufffd\uffff\ue000"
)
SPECIAL_CHARACTERS += "\U0001e5f1\U00010d40\U0002ee59\u1c89\ua7cb\U00011f50\U000105c9"
UNICODE = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from(SPECIAL_CHARACTERS)
)
OPTIONS = [(True, None, True), (False, None, True), (True, False, False), (False, True, True)]


@functools.cache
def trained():
    texts = [TEXT * 3, *pydoc_data.topics.topics.values()][:20]
    return tokenizers.WordPiece.train(texts, 600)


@functools.cache
def variant(options):
    """Return the trained pieces with other options, as our tokenizer and as the Rust library's."""
    lowercase, strip_accents, split_chinese = options
    tok = trained()
    ours = tokenizers.WordPiece(tok.vocabulary, *options, max_word_length=20)
    ids = {piece: index for index, piece in enumerate(tok.vocabulary)}
    model = rust.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=20)
    original = rust.Tokenizer(model)
    original.normalizer = rust.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=split_chinese
    )
    original.pre_tokenizer = rust.pre_tokenizers.BertPreTokenizer()
    original.decoder = rust.decoders.WordPiece()
    return ours, original, *trace(ours)


def trace(tok):
    """Return `tokenize` and `detokenize`, traced once for all lengths."""
    spec = [tf.TensorSpec([None], tf.string)]
    rows = [tf.RaggedTensorSpec([None, None], tf.int32)]
    return tf.function(tok.tokenize, spec), tf.function(tok.detokenize, rows)


@pytest.mark.parametrize("options", OPTIONS)
@given(UNICODE, UNICODE)
@example("", " ")
@example("a" * 20 + " " + "a" * 21, "e\u0301" * 20 + " " + "字" * 21)
@example("[CLS] [MASK] ##ing", "do n't, it 's . \x00\U0001d165\u034f\U0001d16d")
def test_ids_and_texts_match_tokenizers_library(options, first, second):
    tok, original, tokenize, detokenize = variant(options)
    texts = [first, TEXT, second]
    ids = [original.encode(text).ids for text in texts]
    assert [tok.encode(text) for text in texts] == ids == tok.encode_batch(texts)
    rows = tokenize(texts)
    assert rows.dtype == tf.int32 and rows.to_list() == ids
    decoded = [original.decode(row, skip_special_tokens=False) for row in ids]
    assert [tok.decode(row) for row in ids] == decoded
    assert [text.decode() for text in detokenize(rows).numpy()] == decoded


@functools.cache
def sample_characters():
    scalars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    pairs = [(a, b) for a, b in itertools.pairwise(scalars) if category(a) != category(b)]
    return {*itertools.chain(*pairs), *scalars[::97]}


@pytest.mark.parametrize("options", OPTIONS)
def test_characters_of_all_categories_and_positions(options):
    tok, original, tokenize, _ = variant(options)
    texts = [f"a{c}b {c} {c}{c}" for c in sample_characters()]
    ids = [encoding.ids for encoding in original.encode_batch(texts)]
    assert tok.encode_batch(texts) == ids
    assert tokenize(texts).to_list() == ids


@given(st.lists(st.integers(0, 599)))
def test_detokenize_matches_decode(ids):
    tok, _, _, detokenize = variant(OPTIONS[0])
    assert detokenize(tf.ragged.constant([ids], tf.int32)).numpy()[0].decode() == tok.decode(ids)
    assert "".join(tok.decode_stream(ids)) == tok.decode(ids)


def test_special_tokens():
    tok = trained()
    assert (tok.pad_id, tok.unk_id, tok.bos_id, tok.eos_id, tok.mask_id) == (0, 1, 2, 3, 4)
    fox = tok.encode("fox")
    assert tok.encode("[MASK]fox[SEP]", parse_special=True) == [4, *fox, 3]
    assert tok.encode_batch(["[MASK]fox"], parse_special=True) == [[4, *fox]]
    assert not {2, 3, 4} & set(tok.encode("[MASK]fox[SEP]"))
    assert tok.decode([2, 4, *fox, 3, 0, 0]) == "[MASK] fox"
    assert tok.detokenize([[2, 4, *fox, 3, 0, 0]]).numpy()[0] == b"[MASK] fox"


def test_empty_batches_and_invalid_utf8():
    tok = trained()
    assert tok.encode_batch([]) == []
    assert tok.tokenize(tf.zeros([0], tf.string)).to_list() == []
    assert tok.tokenize(["", " "]).to_list() == [[], []]
    assert tok.detokenize(tf.zeros([2, 0], tf.int32)).numpy().tolist() == [b"", b""]
    assert tok.tokenize([b"fo\xffx \xe2\x82"]).to_list() == [tok.encode("fox")]


def test_tf_data_and_saved_model(tmp_path):
    tok = trained()
    data = tf.data.Dataset.from_tensor_slices([TEXT, "fox"]).batch(2).map(tok.tokenize)
    assert next(iter(data)).to_list() == [tok.encode(TEXT), tok.encode("fox")]
    module = tf.Module()
    module.resources = tok.graph_resources()
    module.tokenize, module.detokenize = trace(tok)
    tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    rows = loaded.tokenize([TEXT, "", "fox"])
    assert rows.to_list() == tok.encode_batch([TEXT, "", "fox"])
    assert [t.decode() for t in loaded.detokenize(rows).numpy()] == [
        tok.decode(row) for row in rows.to_list()
    ]


TRAIN_SCRIPT = """
import json, sys, tokenizers
from keras_llm.tokenizers import BytePair, WordPiece
texts = json.load(sys.stdin)
json.dump([WordPiece.train(texts, 400).vocabulary, BytePair.train(texts, 400).merges], sys.stdout)
"""


def test_training_is_deterministic_across_processes(tmp_path):
    """The trainer's hash tables are seeded differently in each process."""
    texts = [TEXT, *pydoc_data.topics.topics.values()][:9]
    runs = {
        subprocess.run(
            [sys.executable, "-c", TRAIN_SCRIPT],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        ).stdout
        for _ in range(3)
    }
    assert len(runs) == 1
    vocabulary, _ = json.loads(*runs)
    assert vocabulary == tokenizers.WordPiece.train(iter(texts), 400).vocabulary
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    paths = [tmp_path / f"{index}.txt" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    assert vocabulary == tokenizers.WordPiece.train(paths, 400).vocabulary


@pytest.mark.parametrize("index", [-1, 600])
def test_out_of_range_ids_raise_error(index):
    with pytest.raises(InputError, match=f"{index} is not in 0 to 599"):
        trained().decode([7, index])


def test_save_and_load(tmp_path):
    tok = tokenizers.WordPiece(trained().vocabulary, lowercase=False, max_word_length=7)
    tok.save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded.vocabulary == tok.vocabulary
    assert loaded.encode(TEXT) == tok.encode(TEXT) != trained().encode(TEXT)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"vocabulary": ["a"]}, r"has no \"\[UNK\]\""),
        ({"vocabulary": ["[UNK]", "a", "a"]}, "'a' has the ids 1 and 2"),
        ({"vocabulary": ["[UNK]", ""]}, "`vocabulary` 1 must be a non-empty str"),
        ({"vocabulary": ["[UNK]", 3]}, "`vocabulary` 1 must be a non-empty str"),
        ({"vocabulary": {"[UNK]": 0}}, "must be a list"),
        ({"vocabulary": ["[UNK]"], "max_word_length": 0}, "max_word_length"),
        ({"vocabulary": ["[UNK]"], "special_tokens": ["[X]"]}, r"'\[X\]' is not in"),
    ],
)
def test_invalid_vocabularies_raise_error(arguments, message):
    with pytest.raises(InputError, match=message):
        tokenizers.WordPiece(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"files_or_iterable": []}, "no text"),
        ({"files_or_iterable": [TEXT], "vocabulary_size": 68}, "at least 69"),
        ({"files_or_iterable": "no/such/file.txt"}, "no/such/file.txt"),
    ],
)
def test_invalid_training_arguments_raise_error(arguments, message):
    with pytest.raises(InputError, match=message):
        tokenizers.WordPiece.train(**arguments)


def test_invalid_folders_raise_error(tmp_path):
    trained().save(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(InputError, match=r"vocab\.txt does not exist"):
        tokenizers.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="UNK"):
        tokenizers.load(tmp_path)
