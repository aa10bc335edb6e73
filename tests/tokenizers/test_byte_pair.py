"""Compare BPE ids with the tokenizers library for any Unicode text, in Python and in a graph."""

import functools
import itertools
import json
import pydoc_data.topics
import random
from unicodedata import category

import pytest
import tensorflow as tf
import tokenizers as rust
from hypothesis import example, given
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.errors import InputError
from keras_llm.tokenizers.pre_tokenizers import PRE_TOKENIZERS

TEXT = """The quick brown fox's 12345 jumps, they'll say.  def f(x):\n\t\treturn  x + 1\r\n\r\n
 春眠不觉晓,处处闻啼鸟。  Où est-il ? Straße 🙂👩‍👩‍👧 I'VE 3½ ٣٤٥"""
SPACES = " \t\n\r\x0b\x1c\x85\xa0\u2028\u3000"
# Characters that the patterns treat differently, and letters and digits newer than TensorFlow's
# Unicode version.
SPECIAL_CHARACTERS = (
    SPACES * 2 + "a'sStTreEvVlLmMdD\u017féK1\uff12½٣字🙂\u0301\u200d.,!_-\x00\ufeff\ufffd\uffff"
)
SPECIAL_CHARACTERS += "\U0001e5f1\U00010d40\U0002ee59\u1c89\ua7cb\U00011f50"
UNICODE = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from(SPECIAL_CHARACTERS)
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def trained():
    texts = [TEXT * 3, *pydoc_data.topics.topics.values()][:20]
    return tokenizers.BytePair.train(texts, 600)


@functools.cache
def variant(pre_tokenizer):
    """Return the trained vocabulary with another pre-tokenizer, ours and the Rust library's."""
    tok = trained()
    ours = tokenizers.BytePair(
        tok.vocabulary, tok.merges, pre_tokenizer, ["<|eos|>", "<|bos|>"], eos="<|eos|>"
    )
    merges = [tuple(merge.split(" ")) for merge in tok.merges]
    original = rust.Tokenizer(rust.models.BPE(tok.vocabulary, merges))
    pre = rust.pre_tokenizers
    with_regex = pre.ByteLevel(add_prefix_space=False)
    without = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    qwen = LLAMA3.replace("{1,3}", "")
    original.pre_tokenizer = {
        "gpt2": with_regex,
        "llama3": pre.Sequence([pre.Split(rust.Regex(LLAMA3), "isolated"), without]),
        "qwen": pre.Sequence([pre.Split(rust.Regex(qwen), "isolated"), without]),
        "smollm": pre.Sequence([pre.Digits(individual_digits=True), with_regex]),
    }[pre_tokenizer]
    return ours, original


def trace(tok):
    """Return `tokenize` and `detokenize`, traced once for all lengths."""
    spec = [tf.TensorSpec([None], tf.string)]
    rows = [tf.RaggedTensorSpec([None, None], tf.int32)]
    return tf.function(tok.tokenize, spec), tf.function(tok.detokenize, rows)


@functools.cache
def traced_variant(pre_tokenizer):
    return trace(variant(pre_tokenizer)[0])


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@given(UNICODE, UNICODE)
@example("", "")
@example("  two  spaces \n\n\ttab\r\n  1  2\u2028\u2028x", " \u3000\r\nend  ")
@example("<|eos|><|bos|>", "aaaaaaaaaaaaaaaaaaaaa" + " " * 33 + "=" * 17)
def test_ids_match_tokenizers_library_and_round_trip(name, first, second):
    tok, original = variant(name)
    tokenize, detokenize = traced_variant(name)
    texts = [first, TEXT, second]
    ids = [original.encode(text).ids for text in texts]
    assert [tok.encode(text) for text in texts] == ids == tok.encode_batch(texts)
    assert [tok.decode(row) for row in ids] == texts
    rows = tokenize(texts)
    assert rows.dtype == tf.int32 and rows.to_list() == ids
    assert [text.decode() for text in detokenize(rows).numpy()] == texts


@functools.cache
def sample_characters():
    scalars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    pairs = [(a, b) for a, b in itertools.pairwise(scalars) if category(a) != category(b)]
    return {*itertools.chain(*pairs), *scalars[::97]}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_characters_of_all_categories_and_positions(name):
    tok, original = variant(name)
    texts = [f"a{c}1{c} {c}  {c}" for c in sample_characters()]
    ids = [encoding.ids for encoding in original.encode_batch(texts)]
    assert tok.encode_batch(texts) == ids
    assert traced_variant(name)[0](texts).to_list() == ids


@pytest.mark.parametrize("seed", range(6))
def test_random_merges_and_missing_bytes(seed):
    """Merges of external models need not come from training on text."""
    rng = random.Random(seed)
    tokens, merges = ["a", "b", "c", "Ġ"], []
    for _ in range(30):
        left, right = rng.choices(tokens, k=2)
        merges.append(f"{left} {right}")
        if left + right not in tokens:
            tokens.append(left + right)
    merges = list(dict.fromkeys(merges))
    if seed % 2:
        rng.shuffle(merges)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for ignore in (False, True):
        tok = tokenizers.BytePair(vocabulary, merges, ignore_merges=ignore)
        model = rust.models.BPE(vocabulary, [tuple(m.split(" ")) for m in merges])
        model.ignore_merges = ignore
        original = rust.Tokenizer(model)
        original.pre_tokenizer = rust.pre_tokenizers.ByteLevel(add_prefix_space=False)
        texts = ["".join(rng.choices("abcé ", [4, 4, 2, 1, 1], k=60)) for _ in range(50)]
        texts += ["", "é", "a" * 41]
        ids = [original.encode(text).ids for text in texts]
        assert tok.encode_batch(texts) == ids
        assert tok.tokenize(texts).to_list() == ids


def test_empty_batches():
    tok = trained()
    assert tok.encode_batch([]) == []
    assert tok.tokenize(tf.zeros([0], tf.string)).to_list() == []
    assert tok.tokenize(["", ""]).to_list() == [[], []]
    assert tok.detokenize(tf.zeros([2, 0], tf.int32)).numpy().tolist() == [b"", b""]


def test_invalid_utf8():
    tok = trained()
    invalid = [b"a\xff\xe2\x82 b", b"\xff", "\ud83d".encode("utf-8", "surrogatepass")]
    expected = [tok.encode(text.decode("utf-8", "replace")) for text in invalid]
    assert tok.tokenize(invalid).to_list() == expected
    ids = tok.encode("🙂字")[:-1]
    assert tok.detokenize([ids]).numpy()[0].decode() == tok.decode(ids)


def test_special_tokens_are_parsed_only_on_request():
    tok = tokenizers.BytePair.train([TEXT], 300, special_tokens=["<|im_start|>"])
    assert (tok.pad_id, tok.bos_id, tok.eos_id, tok.unk_id) == (0, 1, 2, -1)
    text = "<|im_start|>fox<|eos|>"
    fox = tok.encode("fox")
    assert tok.encode(text, parse_special=True) == [3, *fox, 2]
    assert tok.encode_batch([text], parse_special=True) == [[3, *fox, 2]]
    assert not {2, 3} & set(tok.encode(text)) and tok.decode(tok.encode(text)) == text
    assert tok.decode([1, 3, *fox, 2, 0, 0]) == "<|im_start|>fox"
    assert tok.detokenize([[1, 3, *fox, 2, 0, 0]]).numpy()[0] == b"<|im_start|>fox"


def test_default_pad_id():
    assert variant("gpt2")[0].pad_id == 2
    assert variant("gpt2")[0].bos_id == -1 and not variant("gpt2")[0].add_bos
    assert tokenizers.BytePair({"a": 0}, []).pad_id == 0


@functools.cache
def normalizing_tokenizer():
    tok = trained()
    nfc = tokenizers.BytePair(tok.vocabulary, tok.merges, "qwen", normalization="NFC")
    return nfc, trace(nfc)[0]


@given(st.text(st.sampled_from("e\u0301ẛ̣Å각ﬁ 1")))
@example("e\u0301 e\u0323\u0307 \u1100\u1161\u11a8 \u212b ")
def test_normalized_text(text):
    tok, tokenize = normalizing_tokenizer()
    ids = variant("qwen")[1].encode(rust.normalizers.NFC().normalize_str(text)).ids
    assert tok.encode(text) == ids == tokenize([text])[0].numpy().tolist()


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
    assert [t.decode() for t in loaded.detokenize(rows).numpy()] == [TEXT, "", "fox"]


def test_training_is_deterministic_and_reads_files(tmp_path):
    path = tmp_path / "text.txt"
    text = TEXT + pydoc_data.topics.topics["assignment"]
    path.write_bytes(text.encode())
    trained = [
        tokenizers.BytePair.train(source, 400, "llama3")
        for source in (str(path), path, [path], [text], (t for t in [text]))
    ]
    assert all(tok.vocabulary_size == 400 for tok in trained)
    assert all(tok.vocabulary == trained[0].vocabulary for tok in trained)
    assert all(tok.merges == trained[0].merges for tok in trained)


@pytest.mark.parametrize("index", [-1, 600])
def test_out_of_range_ids_raise_error(index):
    with pytest.raises(InputError, match=f"{index} is not in 0 to 599"):
        trained().decode([7, index])


def test_save_and_load(tmp_path):
    tok = tokenizers.BytePair.train([TEXT], 400, "smollm", ["<|im_start|>"])
    tok.save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded.vocabulary == tok.vocabulary and loaded.special_tokens == tok.special_tokens
    assert loaded.encode(TEXT, parse_special=True) == tok.encode(TEXT, parse_special=True)
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2) and loaded.add_bos
    assert loaded.pre_tokenizer == "smollm"


@given(UNICODE)
@example("a🙂b👩‍👩‍👧\ufffd")
def test_decode_stream_keeps_characters_whole(text):
    tok = trained()
    pieces = list(tok.decode_stream(tok.encode(text)))
    assert "".join(pieces) == text and all(pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


VOCABULARY = {"a": 0, "b": 1, "ab": 2}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"vocabulary": {"a": 0, "b": 2}}, "no token has id 1"),
        ({"vocabulary": {"a": 0, "b": 0}}, "'a' and 'b' both have id 0"),
        ({"vocabulary": {"a": 0, "b": "1"}}, "got id '1' for token 'b'"),
        ({"vocabulary": ["a"]}, "must be a dict"),
        ({"vocabulary": VOCABULARY, "merges": ["a c"]}, "uses 'c'"),
        ({"vocabulary": VOCABULARY, "merges": ["b a"]}, "uses 'ba'"),
        ({"vocabulary": VOCABULARY, "merges": ["ab"]}, "left right"),
        ({"vocabulary": VOCABULARY, "pre_tokenizer": "word"}, "'gpt2'.*got 'word'"),
        ({"vocabulary": VOCABULARY, "bos": "<s>"}, "`bos` is '<s>'"),
        ({"vocabulary": VOCABULARY, "special_tokens": ["<s>"]}, "'<s>' is not in"),
        ({"vocabulary": VOCABULARY, "special_tokens": {"a": 3}}, "'a' has id 3, but id 0 in"),
        ({"vocabulary": VOCABULARY, "special_tokens": {"<s>": 5}}, "no token has id 3"),
        ({"vocabulary": VOCABULARY, "normalization": "NFKC"}, "normalization"),
    ],
)
def test_invalid_vocabularies_raise_error(arguments, message):
    with pytest.raises(InputError, match=message):
        tokenizers.BytePair(**{"merges": [], **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"files_or_iterable": []}, "no text"),
        ({"files_or_iterable": [TEXT], "vocabulary_size": 258}, "259"),
        ({"files_or_iterable": [TEXT], "pre_tokenizer": "word"}, "pre_tokenizer"),
        ({"files_or_iterable": "no/such/file.txt"}, "no/such/file.txt"),
    ],
)
def test_invalid_training_arguments_raise_error(arguments, message):
    with pytest.raises(InputError, match=message):
        tokenizers.BytePair.train(**arguments)


def test_invalid_folders_raise_error(tmp_path):
    trained().save(tmp_path)
    (tmp_path / "merges.txt").write_text("a\n")
    with pytest.raises(InputError, match="merges"):
        tokenizers.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt does not exist"):
        tokenizers.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(InputError, match=r"vocab\.json is not JSON"):
        tokenizers.load(tmp_path)
    trained().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "color": 1}))
    with pytest.raises(InputError, match="color"):
        tokenizers.load(tmp_path)
