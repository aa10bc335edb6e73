"""Test the preprocessing layers of keras_nlp with tokenizers and models of this library."""

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import models, tokenizers

TEXTS = ["once upon a time", "there was a fox", "a fox was once there upon a time", "time"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.WordPiece.train([*TEXTS, "abcdefghijklmnopqrstuvwxyz"] * 3, 120)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "max_length": 16}
    return models.preset("bert-tiny", **sizes)


def test_multi_segment_packer_and_mask_generator_train_a_masked_language_model(tokenizer, encoder):
    pack = keras_nlp.layers.MultiSegmentPacker(
        sequence_length=16,
        start_value=tokenizer.bos_id,
        end_value=tokenizer.eos_id,
        pad_value=tokenizer.pad_id,
    )
    special = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id]
    mask = keras_nlp.layers.MaskedLMMaskGenerator(
        vocabulary_size=tokenizer.vocabulary_size,
        mask_selection_rate=0.4,
        mask_selection_length=5,
        mask_token_id=tokenizer.mask_id,
        unselectable_token_ids=special,
    )

    def example(first, second):
        ids, segments = pack((tokenizer.tokenize(first), tokenizer.tokenize(second)))
        masked = mask(ids)
        inputs = {
            "token_ids": masked["token_ids"],
            "padding_mask": ids != tokenizer.pad_id,
            "segment_ids": segments,
            "mask_positions": masked["mask_positions"],
        }
        return inputs, masked["mask_ids"], masked["mask_weights"]

    pairs = tf.data.Dataset.from_tensor_slices((TEXTS, TEXTS[::-1])).batch(2).map(example)
    inputs, targets, weights = next(iter(pairs))
    row = [i for i in inputs["token_ids"].numpy()[0] if i != tokenizer.pad_id]
    expected = [
        tokenizer.bos_id,
        *tokenizer.encode(TEXTS[0]),
        tokenizer.eos_id,
        *tokenizer.encode(TEXTS[3]),
        tokenizer.eos_id,
    ]
    assert len(row) == len(expected)
    for place, target, weight in zip(
        inputs["mask_positions"][0].numpy(), targets[0].numpy(), weights[0].numpy(), strict=True
    ):
        assert not weight or expected[place] == target
    model = models.masked_lm(encoder)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(pairs, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]


def test_start_end_packer_trains_a_causal_model(tokenizer):
    pack = keras_nlp.layers.StartEndPacker(
        sequence_length=9,
        start_value=tokenizer.bos_id,
        end_value=tokenizer.eos_id,
        pad_value=tokenizer.pad_id,
        return_padding_mask=True,
    )

    def example(text):
        ids, real = pack(tokenizer.tokenize(text))
        return ids[:, :-1], ids[:, 1:], real[:, 1:]

    rows = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(example)
    inputs, targets, real = (part.numpy() for part in next(iter(rows)))
    for text, row, target, mask in zip(TEXTS, inputs, targets, real, strict=True):
        ids = tokenizer.encode(text)[:7]
        assert [*row[:1], *target[mask]] == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "max_length": 16}
    model = models.causal_lm(models.preset("llama-tiny", **sizes))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(rows, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", ["RandomDeletion", "RandomSwap"])
def test_augmentation_of_token_ids(tokenizer, name):
    augment = getattr(keras_nlp.layers, name)(rate=0.5, seed=3)
    rows = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4)
    augmented = next(iter(rows.map(lambda texts: augment(tokenizer.tokenize(texts)))))
    before = [tokenizer.encode(text) for text in TEXTS]
    after = augmented.to_list()
    assert after != before
    for old, new in zip(before, after, strict=True):
        assert set(new) <= set(old)
        assert len(new) == len(old) if name == "RandomSwap" else len(new) <= len(old)
    assert tokenizer.decode(np.array(after[2]))
