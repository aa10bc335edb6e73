"""Test tokenizers as Keras layers with the arguments of KerasHub's tokenizers."""

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.errors import InputError
from keras_llm.tokenizers.keras_layer import TokenizerLayer

TEXTS = ["once upon a time there was a <|im_start|> cat", "two  words \u2581 \u5b57"] * 20
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "qu", "##ick", "br", "##own", "fox"]
TOKENIZERS = {
    "byte_pair": tokenizers.BytePair.train(TEXTS, 400, special_tokens=["<|im_start|>"]),
    "word_piece": tokenizers.WordPiece.train(TEXTS, 120),
    "sentencepiece": tokenizers.SentencePiece.train(TEXTS, 320, "bpe"),
}


@pytest.mark.parametrize("dtype", ["int32", "int64", "string"])
@pytest.mark.parametrize("length", [None, 4])
@pytest.mark.parametrize("special", [False, True])
def test_matches_keras_hub(dtype, length, special):
    options = {"sequence_length": length, "special_tokens_in_strings": special, "dtype": dtype}
    layer = tokenizers.WordPiece(PIECES).as_layer(**options)
    hub = keras_hub.tokenizers.WordPieceTokenizer(
        PIECES, lowercase=True, special_tokens=PIECES[:5], **options
    )
    texts = ["the QUICK brown fox", "the [MASK] fox.", ""]
    ours = layer(texts)
    assert ours.dtype == dtype and isinstance(ours, tf.RaggedTensor) == (length is None)
    rows = [row.numpy().tolist() for row in ours]
    expected = [np.asarray(row).tolist() for row in hub(texts)]
    if dtype == "string":
        rows = [[token.decode() for token in row] for row in rows]
        expected = [[tf.compat.as_text(token) for token in row] for row in expected]
    assert rows == expected
    assert layer(texts[0]).shape == ([length] if length else [6])
    assert layer.get_vocabulary() == PIECES and layer.vocabulary_size() == len(PIECES)
    assert layer.id_to_token(5) == "the" and layer.token_to_id("the") == 5
    assert layer.token_to_id("dog") == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tf_data_and_config(name):
    tok = TOKENIZERS[name]
    layer = tok.as_layer(sequence_length=9, add_bos=True, add_eos=True, name="encode")
    rows = next(iter(tf.data.Dataset.from_tensor_slices(TEXTS).batch(3).map(layer)))
    encoded = [[tok.bos_id, *tok.encode(text), tok.eos_id] for text in TEXTS[:3]]
    assert rows.numpy().tolist() == [(ids + [tok.pad_id] * 9)[:9] for ids in encoded]
    again = TokenizerLayer.from_config(layer.get_config())
    assert again.name == "encode" and again(TEXTS).numpy().tolist() == layer(TEXTS).numpy().tolist()
    assert again.detokenize([tok.encode("upon")]).numpy().tolist() == [b"upon"]
    assert again.detokenize(tok.encode("upon")).numpy() == b"upon"
    assert again.detokenize(np.array([tok.encode("upon")])).numpy().tolist() == [b"upon"]
    assert again.detokenize(np.array(tok.encode("upon"))).numpy() == b"upon"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_get_config_restores_tokenizer(name, text):
    tok = TOKENIZERS[name]
    again = tokenizers.Tokenizer.from_config(tok.get_config())
    assert type(again) is type(tok) and again.encode(text) == tok.encode(text)
    assert again.get_config() == tok.get_config()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float32"}, "`dtype`"),
        ({"sequence_length": 0}, "`sequence_length`"),
        ({"tokenizer": "word_piece"}, "`tokenizer`"),
        ({"tokenizer": tokenizers.WordPiece(["[UNK]"]), "add_bos": True}, "`add_bos`"),
    ],
)
def test_invalid_arguments_raise_error(options, message):
    with pytest.raises(InputError, match=message):
        TokenizerLayer(**{"tokenizer": TOKENIZERS["word_piece"], **options})


@pytest.mark.parametrize("config", [{}, {"class": "BytePair"}, {"class": "x", "files": {}}, []])
def test_invalid_config_raises_error(config):
    with pytest.raises(InputError, match=r"describe|missing"):
        tokenizers.Tokenizer.from_config(config)
