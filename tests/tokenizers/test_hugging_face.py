"""Test that tokenizer files of Hugging Face's libraries are read and written with the same ids."""

import functools
import json
import pathlib
import pydoc_data.topics
import sys

import pytest
import sentencepiece
import tokenizers as rust

from keras_llm import tokenizers
from keras_llm.errors import InputError
from keras_llm.tokenizers.pre_tokenizers import PRE_TOKENIZERS

TEXT = """The fox's 12345 jumps, they'll say.  def f(x):\n\t\treturn  x + 1\r\n\r\n
 春眠不觉晓 Où est-il? Straße 🙂 \u2581\ue000 I'VE 3½ <|eos|><s>[MASK]x<unk></s> \x00"""
TEXTS = [TEXT, "", " ", "the end", *(" " * n + "x" for n in range(9))]
TOPICS = [TEXT, *pydoc_data.topics.topics.values()][:9]
LLAMA3 = PRE_TOKENIZERS["llama3"].pattern


@functools.cache
def make_byte_pair():
    return tokenizers.BytePair.train(TOPICS, 500, special_tokens=["<s>", "<mask>"])


@functools.cache
def make_sentencepiece(model_type="bpe"):
    return tokenizers.SentencePiece.train(TOPICS, 500, model_type)


def rust_byte_level_bpe(pre_tokenizer, **model):
    """Return a byte-level BPE of the Rust library, with special tokens outside its vocabulary."""
    tok = make_byte_pair()
    vocabulary = {token: index for token, index in tok.vocabulary.items() if index > 4}
    # Its ids begin at 0, as in every checkpoint.
    vocabulary = {token: index - 5 for token, index in vocabulary.items()}
    merges = [tuple(merge.split(" ")) for merge in tok.merges]
    tokenizer = rust.Tokenizer(rust.models.BPE(vocabulary, merges, **model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = rust.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<|eos|>"])
    tokenizer.add_special_tokens([rust.AddedToken("<mask>", lstrip=True)])
    return tokenizer


def rust_byte_level(**options):
    return rust.pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def rust_split(pattern):
    pieces = rust.pre_tokenizers.Split(rust.Regex(pattern), "isolated")
    return rust.pre_tokenizers.Sequence([pieces, rust_byte_level(use_regex=False)])


RUST_TOKENIZERS = {
    "gpt2": lambda: rust_byte_level_bpe(rust_byte_level()),
    "llama3": lambda: rust_byte_level_bpe(rust_split(LLAMA3), ignore_merges=True),
    "qwen": lambda: rust_byte_level_bpe(rust_split(LLAMA3.replace("{1,3}", ""))),
    "smollm": lambda: rust_byte_level_bpe(
        rust.pre_tokenizers.Sequence(
            [rust.pre_tokenizers.Digits(individual_digits=True), rust_byte_level()]
        )
    ),
}


@pytest.mark.parametrize("name", RUST_TOKENIZERS)
def test_read_byte_pair(name, tmp_path):
    rust_tokenizer = RUST_TOKENIZERS[name]()
    if name == "qwen":
        rust_tokenizer.normalizer = rust.normalizers.NFC()
    if name == "llama3":
        rust_tokenizer.post_processor = rust.processors.TemplateProcessing(
            single=["<s>", "$A"], special_tokens=[("<s>", rust_tokenizer.token_to_id("<s>"))]
        )
    rust_tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "<|eos|>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = tokenizers.from_hugging_face(tmp_path)
    texts = [*TEXTS, "a  <mask> b e\u0301"]
    expected = [rust_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert tok.encode_batch(texts, parse_special=True) == expected
    assert tok.pre_tokenizer == name and tok.add_bos == (name == "llama3")
    assert (tok.bos_id, tok.eos_id) == (
        rust_tokenizer.token_to_id("<s>"),
        rust_tokenizer.token_to_id("<|eos|>"),
    )
    assert tok.pad_id == tok.eos_id and tok.vocabulary_size == rust_tokenizer.get_vocab_size()
    assert tok.tokenize(texts).to_list() == tok.encode_batch(texts)


def test_read_gpt2_files(tmp_path):
    vocabulary = {
        token: i for i, token in enumerate([*make_byte_pair().vocabulary, "<|endoftext|>"])
    }
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    text = "#version: 0.2\n" + "\n".join(make_byte_pair().merges) + "\n"
    (tmp_path / "merges.txt").write_text(text, "utf-8")
    tok = tokenizers.from_hugging_face(tmp_path)
    assert tok.encode_batch(TEXTS) == make_byte_pair().encode_batch(TEXTS)
    assert tok.bos_id == tok.eos_id == tok.pad_id == 500 and not tok.add_bos
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt does not exist"):
        tokenizers.from_hugging_face(tmp_path)


@pytest.mark.parametrize("lowercase", [True, False])
def test_read_word_piece(lowercase, tmp_path):
    pieces = tokenizers.WordPiece.train(TOPICS, 500, lowercase=lowercase).vocabulary
    (tmp_path / "vocab.txt").write_bytes("\n".join(pieces).encode())
    rust_tokenizer = rust.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lowercase)
    expected = [rust_tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    from_text = tokenizers.from_hugging_face(tmp_path)
    rust_tokenizer.enable_truncation(5)
    rust_tokenizer.save(str(tmp_path / "tokenizer.json"))
    from_json = tokenizers.from_hugging_face(tmp_path)
    for tok in (from_text, from_json):
        assert tok.encode_batch(TEXTS, parse_special=True) == expected
        assert (tok.bos_id, tok.eos_id, tok.lowercase) == (2, 3, lowercase)


def test_read_sentencepiece(tmp_path):
    model = tmp_path / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TOPICS),
        model_writer=model.open("wb"),
        vocab_size=400,
        pad_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
    settings = {
        "pad_token": "<pad>",
        "add_bos_token": False,
        "added_tokens_decoder": {"2": {"content": "</s>"}, "400": {"content": "<pad>"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = tokenizers.from_hugging_face(tmp_path)
    assert tok.encode_batch(TEXTS) == processor.encode(TEXTS)
    assert (tok.pad_id, tok.eos_id, tok.add_bos, tok.vocabulary_size) == (400, 2, False, 401)
    pieces = [processor.id_to_piece(index) for index in range(400)]
    data = {
        "model": {"type": "Unigram", "vocab": [[piece, 0.0] for piece in pieces]},
        "added_tokens": [{"id": 400, "content": "<pad>"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert tokenizers.from_hugging_face(tmp_path).encode_batch(TEXTS) == processor.encode(TEXTS)
    settings = {"normalizer": None, "pre_tokenizer": None}  # spaces stay spaces
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | settings))
    with pytest.raises(InputError, match="the normalizer is None, which is not supported"):
        tokenizers.from_hugging_face(tmp_path)
    pieces[7], pieces[8] = pieces[8], pieces[7]
    data["model"]["vocab"] = [[piece, 0.0] for piece in pieces]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"as id 7, but tokenizer\.json has it as 8"):
        tokenizers.from_hugging_face(tmp_path)
    model.rename(tmp_path / "other.model")
    with pytest.raises(InputError, match="the normalizer is None, which is not supported"):
        tokenizers.from_hugging_face(tmp_path)


SPACE = "\u2581"


def bpe_folder(folder, edit=lambda data: None, model=True, **settings):
    """Write a BPE converted from a SentencePiece model with a pre-tokenizer like Llama's."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))
    try:
        import fuzz_tokenizers
    finally:
        sys.path.pop(0)
    options = {"byte_fallback": True, "character_coverage": 1.0, "size": 700, "pad_id": -1}
    proto = fuzz_tokenizers.trained("bpe", unk_id=0, bos_id=1, eos_id=2, **options)
    original = fuzz_tokenizers.with_merges(proto)
    original.pre_tokenizer = rust.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    decoders = rust.decoders
    original.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    original.add_special_tokens(["<unk>", "<s>", "</s>"])
    data = json.loads(original.to_str())
    edit(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    if model:
        (folder / "tokenizer.model").write_bytes(proto)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return original


@pytest.mark.parametrize("unknown", ["<unk>", None])
@pytest.mark.parametrize("model", [True, False])
def test_read_converted_sentencepiece(model, unknown, tmp_path):
    """transformers 5 writes Llama's tokenizer.json without unknown token and tokenizer.model."""

    def edit(data):
        data["model"]["unk_token"] = unknown

    original = bpe_folder(tmp_path, edit, model)
    tok = tokenizers.from_hugging_face(tmp_path)
    for text in (*TEXTS, "<s> the</s>the", "  the", SPACE):
        ids = original.encode(text, add_special_tokens=False).ids
        assert tok.encode(text, parse_special=True) == ids
        assert tok.decode(tok.encode(text)) == original.decode(tok.encode(text))
    assert (tok.unk_id, tok.bos_id, tok.eos_id, tok.add_bos) == (0, 1, 2, True)
    assert tok.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}


def test_added_tokens_of_converted_sentencepiece(tmp_path):
    """Tokens that are not special keep their text; they are still no part of plain text."""
    added = [("<tool>", False), ("<turn>", True)]

    def edit(data):
        for index, (content, special) in enumerate(added):
            token = {"id": 700 + index, "content": content, "special": special}
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            data["added_tokens"].append({**token, **flags})

    for model in (True, False):
        bpe_folder(tmp_path, edit, model)
        tok = tokenizers.from_hugging_face(tmp_path)
        assert tok.vocabulary_size == 702
        ids = tok.encode("<tool>the<turn>", parse_special=True)
        assert ids[0] == 700 and ids[-1] == 701 and tok.decode(ids) == "<tool>the"
        assert not {700, 701} & set(tok.encode("<tool>the<turn>"))
        assert tok.decode(tok.encode("<tool>the<turn>")) == "<tool>the<turn>"
        (tmp_path / "tokenizer.model").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "settings, text, expected",
    [
        ({}, "</s>the", ["</s>", f"{SPACE}the"]),
        ({"legacy": True}, "</s>the", ["</s>", f"{SPACE}the"]),
        ({"legacy": False}, "</s>the", ["</s>", "the"]),
        ({"legacy": False}, "the</s>", [f"{SPACE}the", "</s>"]),
        ({"legacy": False}, " the", [f"{SPACE}the"]),
        ({"add_prefix_space": False}, "the", ["the"]),
    ],
)
def test_prefix_settings_without_json(settings, text, expected, tmp_path):
    bpe_folder(tmp_path, **settings)
    (tmp_path / "tokenizer.json").unlink()
    tok = tokenizers.from_hugging_face(tmp_path)
    ids = tok.encode(text, parse_special=True)
    whole = "".join(tok.token(index) for index in ids)
    assert whole == "".join(expected) and tok.token(ids[0])[0] == expected[0][0]


@pytest.mark.parametrize(
    "post, settings, expected",
    [
        (None, {}, True),
        ("<s>", {}, True),
        ("</s>", {}, False),
        ("<s>", {"add_bos_token": False}, False),
        ("</s>", {"add_bos_token": True}, True),
    ],
)
def test_begin_token_of_converted_sentencepiece(post, settings, expected, tmp_path):
    def edit(data):
        if post:
            single = [{"SpecialToken": {"id": post, "type_id": 0}}, {"Sequence": {"id": "A"}}]
            data["post_processor"] = {"type": "TemplateProcessing", "single": single}

    bpe_folder(tmp_path, edit, **settings)
    assert tokenizers.from_hugging_face(tmp_path).add_bos == expected


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("normalizer", {"type": "Lowercase"}, "normalizer is .*Lowercase"),
        ("normalizer", {"type": "Prepend", "prepend": SPACE}, "normalizer is .*Prepend"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer is .*Whitespace"),
        ("pre_tokenizer.replacement", "_", "replacement of pre_tokenizer is '_'"),
        ("pre_tokenizer.prepend_scheme", "last", "prepend_scheme of pre_tokenizer is 'last'"),
        ("decoder", {"type": "ByteLevel"}, "the decoder is .*ByteLevel"),
        ("model.dropout", 0.1, r"model\.dropout is 0\.1"),
        ("model.ignore_merges", True, r"model\.ignore_merges is True"),
        ("model.end_of_word_suffix", "</w>", r"model\.end_of_word_suffix is '</w>'"),
        ("model.merges", [["t", "h"]], r"model\.merges are not those of a SentencePiece model"),
        ("model.unk_token", "<x>", "no unknown token"),
        ("added_tokens", [{"id": 9, "content": "<s>"}], "has id 9, but id 1"),
        ("added_tokens", [{"id": 900, "content": "<x>"}], "must be 0 to 700"),
    ],
)
def test_unsupported_converted_files_raise_error(path, value, message, tmp_path):
    bpe_folder(tmp_path, lambda data: set_path(data, path, value), model=False)
    with pytest.raises(InputError, match=message):
        tokenizers.from_hugging_face(tmp_path)


def make_normalizing():
    return tokenizers.BytePair(
        make_byte_pair().vocabulary,
        make_byte_pair().merges,
        "llama3",
        ["<s>", "<mask>"],
        eos="<s>",
        normalization="NFC",
        ignore_merges=True,
        lstrip=["<mask>"],
    )


TOKENIZERS = {
    "byte_pair": make_byte_pair,
    "byte_pair_of_nfc": make_normalizing,
    "word_piece": lambda: tokenizers.WordPiece.train(TOPICS, 500),
    "sentence_piece_bpe": lambda: make_sentencepiece("bpe"),
    "sentence_piece_unigram": lambda: make_sentencepiece("unigram"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_written_files_give_same_ids(name, tmp_path):
    tok = TOKENIZERS[name]()
    tokenizers.to_hugging_face(tok, tmp_path)
    rust_tokenizer = rust.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*TEXTS, "a  <mask> b", *TOPICS[-3:]]
    ids = tok.encode_batch(texts, parse_special=True)
    assert [rust_tokenizer.encode(text, add_special_tokens=False).ids for text in texts] == ids
    decoded = rust_tokenizer.decode(ids[-1], skip_special_tokens=False)
    assert decoded == tok.decode(ids[-1])
    with_special = rust_tokenizer.encode("the end").ids
    begin = [tok.bos_id] if tok.add_bos else []
    end = [tok.eos_id] if isinstance(tok, tokenizers.WordPiece) else []
    assert with_special == [*begin, *tok.encode("the end"), *end]
    loaded = tokenizers.from_hugging_face(tmp_path)
    assert loaded.encode_batch(texts) == tok.encode_batch(texts)
    for name in ("vocabulary_size", "pad_id", "bos_id", "eos_id", "unk_id", "add_bos"):
        assert getattr(loaded, name) == getattr(tok, name)


def test_external_models_are_written_unchanged(tmp_path):
    tok = tokenizers.SentencePiece(make_sentencepiece().model, escape=False)
    tokenizers.to_hugging_face(tok, tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == tok.model
    loaded = tokenizers.from_hugging_face(tmp_path)
    assert (
        loaded.encode("a \u2581")
        == tok.encode("a \u2581")
        != make_sentencepiece().encode("a \u2581")
    )
    with pytest.raises(InputError, match="got dict"):
        tokenizers.to_hugging_face({}, tmp_path)


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_flags_of_models_that_remove_white_space_are_written(rule, add_dummy_prefix, tmp_path):
    """T5 without tokenizer.json has such tokens."""
    with open(tmp_path / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TOPICS),
            model_writer=file,
            vocab_size=400,
            normalization_rule_name=rule,
            add_dummy_prefix=add_dummy_prefix,
            minloglevel=2,
        )
    token = {"content": "<extra>", "lstrip": True, "rstrip": True, "special": True}
    settings = {"added_tokens_decoder": {"400": token}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = tokenizers.from_hugging_face(tmp_path)
    tokenizers.to_hugging_face(tok, tmp_path / "out")
    written = rust.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    again = tokenizers.from_hugging_face(tmp_path / "out")
    for text in (*TEXTS, "a  b", " a b ", "  ", "a <extra>  b  c\n  d \n", "\u3000a\u00a0 b\t"):
        ids = tok.encode(text, parse_special=True)
        assert written.encode(text, add_special_tokens=False).ids == ids
        assert again.encode(text, parse_special=True) == ids
        if not {400, tok.unk_id} & {*ids}:
            assert written.decode(ids) == tok.decode(ids)


def test_chat_templates(tmp_path):
    assert tokenizers.chat_template_from_hugging_face(tmp_path) is None
    hello = [{"role": "user", "content": "Hello"}]
    template = tokenizers.ChatTemplate("{{ bos_token }}{{ messages[0].content }}")
    tokenizers.to_hugging_face(make_byte_pair(), tmp_path, template)
    loaded = tokenizers.chat_template_from_hugging_face(tmp_path)
    assert loaded.render(hello) == "<|bos|>Hello"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}!")
    assert tokenizers.chat_template_from_hugging_face(tmp_path).render(hello) == "<|eos|>!"
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(InputError, match=f"{tmp_path}: chat template, line 1"):
        tokenizers.chat_template_from_hugging_face(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert tokenizers.chat_template_from_hugging_face(tmp_path).render(hello) == "yes"


def set_path(data, path, value):
    *path, last = path.split(".")
    for name in path:
        data = data[name]
    data[last] = value


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("model.type", "WordLevel", "'WordLevel'"),
        ("model.dropout", 0.1, r"model\.dropout is 0\.1"),
        ("model.end_of_word_suffix", "</w>", "'</w>'"),
        ("model.merges", [["x", "nonsense"]], "'nonsense'"),
        ("model.vocab", {"a": 0, "b": 2}, "no token has id"),
        ("model.vocab", [], "not a valid tokenizer|must be a dict"),
        ("normalizer", {"type": "NFKC"}, "normalizer is.*NFKC"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer is.*Whitespace"),
        ("pre_tokenizer.add_prefix_space", True, "pre_tokenizer is.*true"),
        ("pre_tokenizer.use_regex", False, "pre_tokenizer is"),
        ("decoder", {"type": "Metaspace"}, "decoder is 'Metaspace'"),
        ("added_tokens", [{"id": 9, "content": "<s>"}], "both have id 9|'<s>'"),
        ("model", [], "not a valid tokenizer"),
    ],
)
def test_unsupported_files_raise_error(path, value, message, tmp_path):
    data = json.loads(RUST_TOKENIZERS["gpt2"]().to_str())
    set_path(data, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        tokenizers.from_hugging_face(tmp_path)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("normalizer", None, "normalizer is None"),
        ("normalizer.clean_text", False, "clean_text is False"),
        ("pre_tokenizer", {"type": "Whitespace"}, "'Whitespace'"),
        ("model.unk_token", "<unk>", "unk_token is '<unk>'"),
        ("model.vocab", {"[UNK]": 3, "a": 1}, "must be 0 to"),
        ("added_tokens", [{"id": 0, "content": "[PAD]", "normalized": True}], "normalized"),
    ],
)
def test_unsupported_word_piece_raises_error(path, value, message, tmp_path):
    tokenizers.to_hugging_face(tokenizers.WordPiece(["[PAD]", "[UNK]", "a"]), tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    set_path(data, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        tokenizers.from_hugging_face(tmp_path)


def test_invalid_files_raise_error(tmp_path):
    with pytest.raises(InputError, match="has no tokenizer"):
        tokenizers.from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"corrupt")
    with pytest.raises(InputError, match=r"tokenizer\.model: not a SentencePiece model"):
        tokenizers.from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"tokenizer\.json is not JSON"):
        tokenizers.from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object, got list"):
        tokenizers.from_hugging_face(tmp_path)
