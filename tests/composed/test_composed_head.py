"""Test classifiers, taggers, regressors and embedders that are composed from layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_llm
from keras_llm import layers as own_layers
from keras_llm import models, tasks, tokenizers
from keras_llm.errors import InputError

ROWS = [
    (f"a {word} film {i}", label)
    for i in range(16)
    for word, label in (("good", "pos"), ("bad", "neg"), ("great", "pos"), ("poor", "neg"))
]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.WordPiece.train([text for text, _ in ROWS], 120)


def encoder(size, *, length=None, head=None, pool=True):
    """Return a model of token ids and a mask, as a BERT-like classifier is composed."""
    token_ids = keras.Input((length,), dtype="int32")
    mask = keras.Input((length,), dtype="bool")
    x = layers.Embedding(size, 16)(token_ids)
    x = own_layers.TransformerEncoder(32, 2, normalize_first=True)(x, padding_mask=mask)
    if pool:
        weights = ops.expand_dims(ops.cast(mask, "float32"), -1)
        x = ops.sum(x * weights, axis=1) / ops.sum(weights, axis=1)
    return keras.Model([token_ids, mask], x if head is None else head(x))


def recurrent(size):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(size, 16, mask_zero=True)(token_ids)
    return keras.Model(token_ids, layers.Dense(2)(layers.LSTM(16)(x)))


def flat(size):
    """Only for texts of 24 tokens."""
    token_ids = keras.Input((24,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(size, 16)(token_ids))
    return keras.Model(token_ids, layers.Dense(2)(x))


@pytest.mark.parametrize("kind", ["encoder", "recurrent", "flat"])
def test_classifiers_are_trained_saved_and_independent_of_the_batch(kind, tokenizer, tmp_path):
    size = tokenizer.vocabulary_size
    make = {
        "encoder": lambda: encoder(size, head=layers.Dense(2)),
        "recurrent": lambda: recurrent(size),
        "flat": lambda: flat(size),
    }
    task = tasks.TextClassification(make[kind](), tokenizer, ["pos", "neg"])
    task.compile(keras.optimizers.Adam(0.02))
    task.fit(ROWS, epochs=6, verbose=0)
    assert task.evaluate(ROWS)["accuracy"] > 0.9
    texts = ["a good film", "bad", "a poor film 3 and a bad film"]
    together = task(texts, return_details=True)
    alone = [task(text, return_details=True) for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
    task.save(tmp_path / "task")
    assert keras_llm.load(tmp_path / "task")(texts) == [result.label for result in together]


def recurrent_layers(task):
    return [layer for layer in task.model.layers if isinstance(layer, layers.RNN)]


def test_heads_are_exported(tokenizer, tmp_path):
    """The exports compare their outputs with Keras, or raise an error."""
    size = tokenizer.vocabulary_size
    classifier = tasks.TextClassification(
        encoder(size, head=layers.Dense(2)), tokenizer, ["pos", "neg"]
    )
    assert classifier.export("saved_model", tmp_path / "classes")["parity"]["texts"] > 5
    tagger = tasks.TokenClassification(
        encoder(size, head=layers.Dense(3), pool=False), tokenizer, ["O", "A", "B"]
    )
    assert tagger.export("litert", tmp_path / "tags.tflite")["parity"]["inputs"] > 5
    unrolled = tasks.TextClassification(recurrent(size), tokenizer, ["pos", "neg"])
    report = unrolled.export("litert", tmp_path / "recurrent.tflite", cache_length=32)
    assert report["parity"]["inputs"] > 5 and not any(x.unroll for x in recurrent_layers(unrolled))
    embedder = tasks.TextEmbedding(encoder(size), tokenizer)
    assert np.shape(embedder(["a good film", "bad"])) == (2, 16)
    regressor = tasks.TextRegression(encoder(size, head=layers.Dense(1)), tokenizer)
    assert len(regressor(["a good film", "bad"])) == 2


def test_padding_other_than_zero():
    """`mask_zero` does not mask it, and inputs of a fixed length are filled with it."""
    with pytest.raises(InputError, match=r"change with its padding.*mask the token 3"):
        models.as_head_model(recurrent(40), "text_classifier", 40, pad_id=3)
    model = models.as_head_model(flat(40), "text_classifier", 40, pad_id=3)
    rows = np.array([[5, 6, 3, 3]], "int32")
    np.testing.assert_array_equal(model([rows[:, :2]]), model([rows]))


def test_max_length_is_checked():
    def make(length):
        return models.as_head_model(flat(40), "text_classifier", 40, max_length=length)

    assert make(None).config.max_length == 24 and make(9).config.max_length == 9
    with pytest.raises(InputError, match="`max_length` must be at most 24, the length of the"):
        make(25)


def test_unsuitable_models_raise_error(tokenizer):
    size = tokenizer.vocabulary_size
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(size, 16)(token_ids)
    features = keras.Input((4, 4))
    mean = keras.Model(token_ids, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    for model, message in (
        (mean, "change with its padding.*mask_zero=True"),
        (encoder(size, pool=False), r"must return logits \(B, C\); it returns \(None, None, 16\)"),
        (keras.Model(features, layers.Dense(2)(features)), "must have the inputs token ids"),
    ):
        with pytest.raises(InputError, match=message):
            tasks.TextClassification(model, tokenizer, ["pos", "neg"])
    with pytest.raises(InputError, match="`labels` must be 2 distinct"):
        tasks.TextClassification(recurrent(size), tokenizer, ["pos", "neg", "other"])
    with pytest.raises(InputError, match="cannot be a masked_lm, only one of text_classifier"):
        models.as_head_model(recurrent(size), "masked_lm", size)


@pytest.mark.parametrize("kind", ["dict", "subclass"])
def test_token_ids_and_mask_by_name_or_in_a_subclass(kind):
    plain = encoder(40, head=layers.Dense(2))
    if kind == "dict":  # Keras sorts the names: the mask comes first
        names = {
            "token_ids": keras.Input((None,), dtype="int32"),
            "padding_mask": keras.Input((None,), dtype="int32"),
        }
        model = keras.Model(names, plain(list(names.values())))
    else:

        class Classifier(keras.Model):
            def __init__(self):
                super().__init__()
                self.inner = plain

            def call(self, inputs):
                token_ids, mask = inputs
                return self.inner([token_ids, mask])

        model = Classifier()
    composed = models.as_head_model(model, "text_classifier", 40)
    ids = np.array([[5, 6, 7, 0]])
    expected = plain([ids, ids != 0])
    np.testing.assert_allclose(composed([ids, ids != 0]), expected, atol=1e-5)
    assert np.abs(expected - np.asarray(plain([ids + 1, ids != 0]))).max() > 1e-4


def test_two_outputs_raise_error():
    model = encoder(40, head=layers.Dense(2))
    with pytest.raises(InputError, match="one output; it has 2"):
        models.as_head_model(
            keras.Model(model.inputs, [model.outputs[0]] * 2), "text_classifier", 40
        )


def test_explanation_of_a_regressor(tokenizer):
    task = tasks.TextRegression(encoder(tokenizer.vocabulary_size, head=layers.Dense(1)), tokenizer)
    assert tasks.explain(task, "a good film").result == str(task("a good film"))
