"""Test encoder-decoders that are composed from layers."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import layers, ops

import keras_llm
from keras_llm import layers as own_layers
from keras_llm import models, tasks, tokenizers
from keras_llm.errors import InputError

NUMBERS = ["one", "two", "three", "four", "five"]
PAIRS = [(f"{a} and {b}", f"{b} und {a}") for a in NUMBERS for b in NUMBERS]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for pair in PAIRS for text in pair]
    return tokenizers.SentencePiece.train(texts * 3, 280, "bpe")


def translator(size, masked=True):
    source = keras.Input((None,), dtype="int32")
    target = keras.Input((None,), dtype="int32")
    mask = ops.not_equal(source, 0)
    embed = own_layers.TokenAndPositionEmbedding(size, 24, 32)
    encoded = own_layers.TransformerEncoder(64, 2, normalize_first=True)(
        embed(source), padding_mask=mask if masked else None
    )
    x = own_layers.TransformerDecoder(64, 2, normalize_first=True)(
        embed(target), encoded, encoder_padding_mask=mask
    )
    return keras.Model([source, target], layers.Dense(size)(x))


def recurrent(size):
    """A recurrent model with attention, of Keras's own layers."""
    source = keras.Input((None,), dtype="int32")
    target = keras.Input((None,), dtype="int32")
    embed = layers.Embedding(size, 16)
    mask = ops.not_equal(source, 0)
    encoded = layers.Dense(16, activation="tanh")(embed(source))
    x = layers.GRU(16, return_sequences=True)(embed(target))
    attention = layers.MultiHeadAttention(2, 8)
    x = x + attention(x, encoded, attention_mask=ops.expand_dims(mask, 1))
    return keras.Model([source, target], layers.Dense(size)(x))


def test_translator_is_trained_saved_and_exported(tokenizer, tmp_path):
    """The exports compare greedy texts with Keras, or raise an error."""
    task = tasks.Translation(translator(tokenizer.vocabulary_size), tokenizer)
    task.compile(keras.optimizers.Adam(0.01))
    task.fit(PAIRS, epochs=30, batch_size=16, verbose=0)
    texts = ["one and two", "five and four"]
    translations = task(texts, max_new_tokens=16)
    assert sum(text in dict(PAIRS).values() for text in translations) == 2
    assert task(texts, max_new_tokens=16, beam_width=1) == translations
    task.save(tmp_path / "task")
    assert keras_llm.load(tmp_path / "task")(texts, max_new_tokens=16) == translations
    assert task.export("litert", tmp_path / "model.tflite")["parity"]["greedy_texts_equal"]


@pytest.mark.parametrize("make", [translator, recurrent])
def test_steps_match_the_whole_model(make):
    model = models.as_seq2seq(make(40), max_length=24)
    rng = np.random.default_rng(0)
    source, ids = (rng.integers(1, 40, (2, n)).astype("int32") for n in (7, 9))
    source[1, 5:] = 0
    whole = np.asarray(model([source, ids]))
    cache = models.init_cache(model, 2, 12) | models.encode_source(model, source)
    logits, cache = models.prefill(model, ids[:, :4], [4, 3], cache)
    np.testing.assert_allclose(logits, whole[[0, 1], [3, 2]], atol=1e-5)
    for step in range(4):
        positions = np.array([[4 + step], [3 + step]])
        new = np.take_along_axis(ids, positions, 1)
        logits, cache = models.decode(model, new, positions, cache)
        np.testing.assert_allclose(logits, whole[[0, 1], positions[:, 0]], atol=1e-5)


def test_unsuitable_models_raise_error(tokenizer):
    with pytest.raises(InputError, match="change with padding of the encoder's token ids"):
        models.as_seq2seq(translator(40, masked=False))
    token_ids = keras.Input((None,), dtype="int32")
    one_input = keras.Model(token_ids, layers.Embedding(40, 40)(token_ids))
    with pytest.raises(InputError, match="must map the token ids of the encoder"):
        tasks.Translation(one_input, tokenizer)
    with pytest.raises(InputError, match="`max_length` is for a composed"):
        tasks.Translation(
            models.seq2seq(models.preset("t5-tiny", vocabulary_size=280)), tokenizer, max_length=9
        )


def with_implicit_masks(read):
    """Return an encoder-decoder whose encoder's embedding masks the padding 0."""
    source, target = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    encoded = layers.Embedding(40, 16, mask_zero=True)(source)
    encoded = own_layers.TransformerEncoder(32, 2)(encoded)
    x = layers.Embedding(40, 16)(target)
    return keras.Model([source, target], layers.Dense(40)(read(x, encoded)))


READERS = {
    "decoder": lambda x, encoded: own_layers.TransformerDecoder(32, 2)(x, encoded),
    "own": lambda x, encoded: x + own_layers.MultiHeadAttention(2, 8)(x, encoded),
    "keras": lambda x, encoded: x + layers.MultiHeadAttention(2, 8)(x, encoded),
    "keras_hub": lambda x, encoded: keras_hub.layers.TransformerDecoder(32, 2)(x, encoded),
}


@pytest.mark.parametrize("kind", READERS)
def test_implicit_masks_of_the_encoder_hold_in_steps(kind):
    model = models.as_seq2seq(with_implicit_masks(READERS[kind]), pad_id=0)
    source = np.array([[5, 6, 7, 0, 0, 0]])
    ids = np.array([[1, 2, 3, 4]])
    cache = models.init_cache(model, 1, 8) | models.encode_source(model, source)
    logits, _ = models.prefill(model, ids, [4], cache)
    np.testing.assert_allclose(logits, model([source, ids])[:, -1], atol=1e-5)
    np.testing.assert_allclose(logits, model([source[:, :3], ids])[:, -1], atol=1e-5)


def test_other_implicit_masks_raise_error():
    def read(x, encoded):
        return x + layers.Attention(name="reader")([x, encoded])

    with pytest.raises(InputError, match=r"'reader' reads a value .* implicit mask"):
        models.as_seq2seq(with_implicit_masks(read), pad_id=0)


def test_two_masks_of_the_encoder():
    source, target = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    encoded = layers.Embedding(40, 16)(source)
    x = layers.Embedding(40, 16)(target)
    for hidden in (0, 7):
        mask = ops.logical_and(ops.not_equal(source, 0), ops.not_equal(source, hidden))
        x = own_layers.TransformerDecoder(32, 2)(x, encoded, encoder_padding_mask=mask)
    model = models.as_seq2seq(keras.Model([source, target], layers.Dense(40)(x)))
    rows, ids = np.array([[5, 7, 9, 0]]), np.array([[1, 2, 3]])
    cache = models.init_cache(model, 1, 8) | models.encode_source(model, rows)
    logits, _ = models.prefill(model, ids, [3], cache)
    np.testing.assert_allclose(logits, model([rows, ids])[:, -1], atol=1e-5)


def test_inputs_by_name():
    plain = translator(40)
    names = {
        name: keras.Input((None,), dtype="int32")
        for name in ("encoder_token_ids", "decoder_token_ids")
    }
    model = keras.Model(names, plain(list(names.values())))
    rows, ids = np.array([[5, 6, 7]]), np.array([[1, 2]])
    composed = models.as_seq2seq(model, pad_id=0)
    np.testing.assert_allclose(composed([rows, ids]), plain([rows, ids]), atol=1e-5)
    other = dict(zip("ab", names.values(), strict=True))
    with pytest.raises(InputError, match="must have the inputs encoder_token_ids, decoder_token_"):
        models.as_seq2seq(keras.Model(other, model.outputs[0]))


def test_subclass_with_two_inputs():
    class Translator(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = translator(40)

        def call(self, inputs):
            source, target = inputs
            return self.inner([source, target])

    model = Translator()
    rows, ids = np.array([[5, 6, 7]]), np.array([[1, 2]])
    composed = models.as_seq2seq(model, pad_id=0)
    np.testing.assert_allclose(composed([rows, ids]), model([rows, ids]), atol=1e-5)


def test_recurrent_encoder_is_exported(tokenizer, tmp_path):
    size = tokenizer.vocabulary_size
    source, target = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    embed = layers.Embedding(size, 16, mask_zero=True)
    encoded = layers.LSTM(16, return_sequences=True)(embed(source))
    x = layers.MultiHeadAttention(2, 8)(layers.Embedding(size, 16)(target), encoded)
    model = keras.Model([source, target], layers.Dense(size)(x))
    task = tasks.Translation(model, tokenizer, max_length=24)
    assert task.export("litert", tmp_path / "x.tflite")["parity"]["greedy_texts_equal"]
