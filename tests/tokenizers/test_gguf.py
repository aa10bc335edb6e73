"""Test tokenizers from GGUF metadata."""

import io
import pydoc_data.topics

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from keras_llm import tokenizers
from keras_llm.errors import InputError

TEXT = pydoc_data.topics.topics["assert"]


def byte_pair_fields():
    tok = tokenizers.BytePair.train([TEXT], 400, "smollm", ["<|im_start|>"])
    types = [3 if token in tok.special_tokens else 1 for token in tok.vocabulary]
    prefix = "tokenizer.ggml."
    return tok, {
        prefix + "model": "gpt2",
        prefix + "pre": "smollm",
        prefix + "tokens": list(tok.vocabulary),
        prefix + "merges": tok.merges,
        prefix + "token_type": np.array(types, "int32"),
        prefix + "bos_token_id": np.uint32(1),
        prefix + "eos_token_id": 2,
        prefix + "add_bos_token": False,
    }


def test_byte_pair():
    tok, fields = byte_pair_fields()
    loaded = tokenizers.from_gguf_metadata(fields)
    text = f"<|im_start|>{TEXT}  12 <|eos|>"
    for parse_special in (False, True):
        assert loaded.encode(text, parse_special) == tok.encode(text, parse_special)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.unk_id) == (1, 2, 2, -1)
    assert not loaded.add_bos and tok.add_bos


def test_llama3_ignores_merges():
    _, fields = byte_pair_fields()
    fields["tokenizer.ggml.pre"] = "llama-bpe"
    del fields["tokenizer.ggml.add_bos_token"]
    loaded = tokenizers.from_gguf_metadata(fields)
    assert loaded.ignore_merges and loaded.add_bos and loaded.pre_tokenizer == "llama3"


@pytest.mark.parametrize("add_space", [True, False])
def test_sentencepiece(add_space):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT]),
        model_writer=writer,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_space,
        user_defined_symbols=["<b>"],
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())
    pieces = sentencepiece_model_pb2.ModelProto.FromString(writer.getvalue()).pieces
    fields = {
        "model": "llama",
        "tokens": [piece.piece for piece in pieces],
        "scores": np.array([piece.score for piece in pieces], "float32"),
        "token_type": [piece.type for piece in pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": add_space,
    }
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    tok = tokenizers.from_gguf_metadata(fields)
    assert (tok.unk_id, tok.bos_id, tok.eos_id, tok.pad_id, tok.add_bos) == (0, 1, 2, 2, True)
    for text in (TEXT, "  two  spaces\n\n<b>é🙂\u2581", "", "</s>"):
        assert tok.encode(text) == original.encode(text)
        assert tok.decode(tok.encode(text)) == original.decode(original.encode(text))
        assert tok.tokenize([text]).to_list() == [original.encode(text)]
    assert tok.encode("</s>", parse_special=True) == [2]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "bert"}, "model is 'bert'"),
        ({"pre": "poro-chat"}, "pre is 'poro-chat'.*'smollm'"),
        ({"pre": None}, "lacks tokenizer.ggml.pre"),
        ({"merges": None}, "lacks tokenizer.ggml.merges"),
        ({"token_type": [1]}, "token_type has 1 entries for 400"),
        ({"bos_token_id": 400}, "bos_token_id is 400"),
        ({"tokens": ["a"] * 400}, "'a' twice"),
        ({"merges": ["a nonsense"]}, "'nonsense'"),
    ],
)
def test_invalid_metadata_raises_error(change, message):
    _, fields = byte_pair_fields()
    fields.update({f"tokenizer.ggml.{name}": value for name, value in change.items()})
    with pytest.raises(InputError, match=message):
        tokenizers.from_gguf_metadata(fields)
