"""Files of Hugging Face's libraries, read and written with the same ids."""

import functools
import json
import pydoc_data.topics

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
def byte_pair():
    return tokenizers.BytePair.train(TOPICS, 500, special_tokens=["<s>", "<mask>"])


@functools.cache
def sentence_piece(model_type="bpe"):
    return tokenizers.SentencePiece.train(TOPICS, 500, model_type)


def original(pre_tokenizer, **model):
    """A byte-level tokenizer of the original library, special tokens outside its vocabulary."""
    tok = byte_pair()
    vocabulary = {token: index for token, index in tok.vocabulary.items() if index > 4}
    # Its ids begin at 0, as they do in every checkpoint.
    vocabulary = {token: index - 5 for token, index in vocabulary.items()}
    merges = [tuple(merge.split(" ")) for merge in tok.merges]
    found = rust.Tokenizer(rust.models.BPE(vocabulary, merges, **model))
    found.pre_tokenizer = pre_tokenizer
    found.decoder = rust.decoders.ByteLevel()
    found.add_special_tokens(["<s>", "<|eos|>"])
    found.add_special_tokens([rust.AddedToken("<mask>", lstrip=True)])
    return found


def byte_level(**options):
    return rust.pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern):
    pieces = rust.pre_tokenizers.Split(rust.Regex(pattern), "isolated")
    return rust.pre_tokenizers.Sequence([pieces, byte_level(use_regex=False)])


ORIGINALS = {
    "gpt2": lambda: original(byte_level()),
    "llama3": lambda: original(split(LLAMA3), ignore_merges=True),
    "qwen": lambda: original(split(LLAMA3.replace("{1,3}", ""))),
    "smollm": lambda: original(
        rust.pre_tokenizers.Sequence(
            [rust.pre_tokenizers.Digits(individual_digits=True), byte_level()]
        )
    ),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_byte_pairs_are_read(name, tmp_path):
    found = ORIGINALS[name]()
    if name == "qwen":
        found.normalizer = rust.normalizers.NFC()
    if name == "llama3":
        found.post_processor = rust.processors.TemplateProcessing(
            single=["<s>", "$A"], special_tokens=[("<s>", found.token_to_id("<s>"))]
        )
    found.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "<|eos|>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = tokenizers.from_hugging_face(tmp_path)
    texts = [*TEXTS, "a  <mask> b e\u0301"]
    expected = [found.encode(text, add_special_tokens=False).ids for text in texts]
    assert tok.encode_batch(texts, parse_special=True) == expected
    assert tok.pre_tokenizer == name and tok.add_bos == (name == "llama3")
    assert (tok.bos_id, tok.eos_id) == (found.token_to_id("<s>"), found.token_to_id("<|eos|>"))
    assert tok.pad_id == tok.eos_id and tok.vocabulary_size == found.get_vocab_size()
    assert tok.tokenize(texts).to_list() == tok.encode_batch(texts)


def test_gpt2_files_are_read(tmp_path):
    vocabulary = {token: i for i, token in enumerate([*byte_pair().vocabulary, "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    text = "#version: 0.2\n" + "\n".join(byte_pair().merges) + "\n"
    (tmp_path / "merges.txt").write_text(text, "utf-8")
    tok = tokenizers.from_hugging_face(tmp_path)
    assert tok.encode_batch(TEXTS) == byte_pair().encode_batch(TEXTS)
    assert tok.bos_id == tok.eos_id == tok.pad_id == 500 and not tok.add_bos
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt does not exist"):
        tokenizers.from_hugging_face(tmp_path)


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces_are_read(lowercase, tmp_path):
    pieces = tokenizers.WordPiece.train(TOPICS, 500, lowercase=lowercase).vocabulary
    (tmp_path / "vocab.txt").write_bytes("\n".join(pieces).encode())
    found = rust.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lowercase)
    expected = [found.encode(text, add_special_tokens=False).ids for text in TEXTS]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    from_text = tokenizers.from_hugging_face(tmp_path)
    found.enable_truncation(5)
    found.save(str(tmp_path / "tokenizer.json"))
    from_json = tokenizers.from_hugging_face(tmp_path)
    for tok in (from_text, from_json):
        assert tok.encode_batch(TEXTS, parse_special=True) == expected
        assert (tok.bos_id, tok.eos_id, tok.lowercase) == (2, 3, lowercase)


def test_sentence_pieces_are_read(tmp_path):
    model = tmp_path / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TOPICS),
        model_writer=model.open("wb"),
        vocab_size=400,
        pad_id=-1,
        minloglevel=2,
    )
    found = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
    settings = {
        "pad_token": "<pad>",
        "add_bos_token": False,
        "added_tokens_decoder": {"2": {"content": "</s>"}, "400": {"content": "<pad>"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = tokenizers.from_hugging_face(tmp_path)
    assert tok.encode_batch(TEXTS) == found.encode(TEXTS)
    assert (tok.pad_id, tok.eos_id, tok.add_bos, tok.vocabulary_size) == (400, 2, False, 401)
    pieces = [found.id_to_piece(index) for index in range(400)]
    data = {
        "model": {"type": "Unigram", "vocab": [[piece, 0.0] for piece in pieces]},
        "added_tokens": [{"id": 400, "content": "<pad>"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert tokenizers.from_hugging_face(tmp_path).encode_batch(TEXTS) == found.encode(TEXTS)
    pieces[7], pieces[8] = pieces[8], pieces[7]
    data["model"]["vocab"] = [[piece, 0.0] for piece in pieces]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"as id 7, but tokenizer\.json has it as 8"):
        tokenizers.from_hugging_face(tmp_path)
    model.rename(tmp_path / "other.model")
    with pytest.raises(InputError, match=r"tokenizer\.model is needed"):
        tokenizers.from_hugging_face(tmp_path)


def normalising():
    return tokenizers.BytePair(
        byte_pair().vocabulary,
        byte_pair().merges,
        "llama3",
        ["<s>", "<mask>"],
        eos="<s>",
        normalization="NFC",
        ignore_merges=True,
        lstrip=["<mask>"],
    )


WRITTEN = {
    "byte_pair": byte_pair,
    "byte_pair_of_nfc": normalising,
    "word_piece": lambda: tokenizers.WordPiece.train(TOPICS, 500),
    "sentence_piece_bpe": lambda: sentence_piece("bpe"),
    "sentence_piece_unigram": lambda: sentence_piece("unigram"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_gives_the_same_ids(name, tmp_path):
    tok = WRITTEN[name]()
    tokenizers.to_hugging_face(tok, tmp_path)
    found = rust.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*TEXTS, "a  <mask> b", *TOPICS[-3:]]
    ids = tok.encode_batch(texts, parse_special=True)
    assert [found.encode(text, add_special_tokens=False).ids for text in texts] == ids
    decoded = found.decode(ids[-1], skip_special_tokens=False)
    assert decoded == tok.decode(ids[-1])
    around = found.encode("the end").ids
    begin = [tok.bos_id] if tok.add_bos else []
    end = [tok.eos_id] if isinstance(tok, tokenizers.WordPiece) else []
    assert around == [*begin, *tok.encode("the end"), *end]
    back = tokenizers.from_hugging_face(tmp_path)
    assert back.encode_batch(texts) == tok.encode_batch(texts)
    for name in ("vocabulary_size", "pad_id", "bos_id", "eos_id", "unk_id", "add_bos"):
        assert getattr(back, name) == getattr(tok, name)


def test_models_made_elsewhere_are_written_as_they_are(tmp_path):
    tok = tokenizers.SentencePiece(sentence_piece().model, escape=False)
    tokenizers.to_hugging_face(tok, tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == tok.model
    back = tokenizers.from_hugging_face(tmp_path)
    assert back.encode("a \u2581") == tok.encode("a \u2581") != sentence_piece().encode("a \u2581")
    with pytest.raises(InputError, match="got dict"):
        tokenizers.to_hugging_face({}, tmp_path)


def test_chat_templates(tmp_path):
    assert tokenizers.chat_template_from_hugging_face(tmp_path) is None
    hello = [{"role": "user", "content": "Hello"}]
    template = tokenizers.ChatTemplate("{{ bos_token }}{{ messages[0].content }}")
    tokenizers.to_hugging_face(byte_pair(), tmp_path, template)
    found = tokenizers.chat_template_from_hugging_face(tmp_path)
    assert found.render(hello) == "<|bos|>Hello"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}!")
    assert tokenizers.chat_template_from_hugging_face(tmp_path).render(hello) == "<|eos|>!"
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(InputError, match=f"{tmp_path}: chat template, line 1"):
        tokenizers.chat_template_from_hugging_face(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert tokenizers.chat_template_from_hugging_face(tmp_path).render(hello) == "yes"


def changed(data, path, value):
    *path, last = path.split(".")
    for name in path:
        data = data[name]
    data[last] = value


@pytest.mark.parametrize(
    "path, value, words",
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
        ("added_tokens", [{"id": 495, "content": "<s>", "rstrip": True}], "has rstrip"),
        ("model", [], "not a valid tokenizer"),
    ],
)
def test_what_cannot_be_represented_is_named(path, value, words, tmp_path):
    data = json.loads(ORIGINALS["gpt2"]().to_str())
    changed(data, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=words):
        tokenizers.from_hugging_face(tmp_path)


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("normalizer", None, "normalizer is None"),
        ("normalizer.clean_text", False, "clean_text is False"),
        ("pre_tokenizer", {"type": "Whitespace"}, "'Whitespace'"),
        ("model.unk_token", "<unk>", "unk_token is '<unk>'"),
        ("model.vocab", {"[UNK]": 3, "a": 1}, "must be 0 to"),
        ("added_tokens", [{"id": 0, "content": "[PAD]", "lstrip": True}], "lstrip"),
    ],
)
def test_other_word_pieces_are_named(path, value, words, tmp_path):
    tokenizers.to_hugging_face(tokenizers.WordPiece(["[PAD]", "[UNK]", "a"]), tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    changed(data, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=words):
        tokenizers.from_hugging_face(tmp_path)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match="has no tokenizer"):
        tokenizers.from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"tokenizer\.model: not a SentencePiece model"):
        tokenizers.from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"tokenizer\.json is not JSON"):
        tokenizers.from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object, got list"):
        tokenizers.from_hugging_face(tmp_path)
