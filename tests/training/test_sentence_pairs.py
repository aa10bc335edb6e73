"""Test BERT's two pretraining tasks: the loss is the sum of both, and both heads are trained."""

import keras
import numpy as np
import pytest

from keras_llm import models, training
from keras_llm.errors import InputError


def test_loss_is_sum_of_both_cross_entropies():
    rng = np.random.default_rng(0)
    encoder = models.encoder(models.preset("bert-tiny", dropout=0.0, initializer_range=0.2))
    model, next_sentence = models.masked_lm(encoder), models.next_sentence(encoder)
    trainer = training.SentencePairTrainer(model, next_sentence, ignore_id=0)
    trainer.compile("sgd")
    ids = rng.integers(1, 512, (4, 9))
    segments = (np.arange(9) > 4) * np.ones((4, 1), int)
    positions = rng.integers(0, 9, (4, 3))
    inputs = dict(
        zip([t.name for t in model.inputs], (ids, ids > 0, segments, positions), strict=True)
    )
    tokens, labels = rng.integers(1, 512, (4, 3)), np.array([0, 1, 1, 0])
    tokens[0, 2] = 0
    batch = inputs, {"tokens": tokens, "next_sentence": labels}
    measures = trainer.evaluate(*batch, return_dict=True, verbose=0)
    logits = model(inputs)
    losses = keras.losses.sparse_categorical_crossentropy(tokens, logits, from_logits=True)
    pair_logits = next_sentence([ids, ids > 0, segments])
    pair_losses = keras.losses.sparse_categorical_crossentropy(
        labels, pair_logits, from_logits=True
    )
    expected = np.asarray(losses)[tokens != 0].mean() + np.mean(pair_losses)
    assert measures["loss"] == pytest.approx(expected, rel=1e-4)
    right = np.argmax(pair_logits, -1) == labels
    assert measures["next_sentence_accuracy"] == pytest.approx(right.mean())
    before = [weight.numpy() for weight in trainer.trained.trainable_weights]
    trainer.fit(*batch, verbose=0)
    after = trainer.trained.trainable_weights
    changed = [not np.array_equal(w, v) for w, v in zip(before, after, strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    assert len(trainer.trained.weights) == len({id(w) for w in trainer.trained.weights})


def test_heads_on_different_encoders_raise_error():
    config = models.preset("bert-tiny")
    with pytest.raises(InputError, match="the same encoder"):
        training.SentencePairTrainer(models.masked_lm(config), models.next_sentence(config))
    with pytest.raises(InputError, match="`next_sentence` must"):
        training.SentencePairTrainer(models.masked_lm(config), models.masked_lm(config))
