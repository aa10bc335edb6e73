"""Compare the contrastive loss with its formula in NumPy, and train an embedder with it."""

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import models, tokenizers, training
from keras_llm.errors import InputError


def numpy_loss(labels, vectors, temperature, symmetric):
    vectors = vectors.astype("float64")
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    losses = []
    for i in range(len(vectors)):
        positive = vectors[i, 0] @ vectors[i, 1] / temperature
        negatives, reverse = [], []
        for j in range(len(vectors)):
            if i == j or labels[i] != labels[j]:
                negatives += [vectors[i, 0] @ other / temperature for other in vectors[j, 1:]]
                reverse.append(vectors[j, 0] @ vectors[i, 1] / temperature)
        loss = np.log(np.exp(negatives).sum()) - positive
        if symmetric:
            loss = (loss + np.log(np.exp(reverse).sum()) - positive) / 2
        losses.append(loss)
    return losses


@pytest.mark.parametrize("texts", [2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_contrastive_loss_matches_formula(texts, symmetric):
    vectors = np.random.default_rng(0).normal(size=(5, texts, 4)).astype("float32")
    loss = training.ContrastiveLoss(0.3, symmetric, reduction=None)
    loss = training.ContrastiveLoss.from_config(loss.get_config())
    for labels in (np.arange(5), np.array([3, 1, 3, 2, 1])):
        losses = loss(labels, vectors)
        np.testing.assert_allclose(losses, numpy_loss(labels, vectors, 0.3, symmetric), atol=1e-5)


def test_embedder_learns_matching_pairs():
    words = [("red", "rouge"), ("blue", "bleu"), ("white", "blanc"), ("black", "noir")]
    tok = tokenizers.WordPiece.train([" ".join(pair) for pair in words] * 9, 80)
    shape = {"vocabulary_size": tok.vocabulary_size, "num_layers": 1, "initializer_range": 0.1}
    embedder = models.sentence_embedder(models.preset("distilbert-tiny", **shape))
    task = keras_llm.TextEmbedding(embedder, tok)
    model = training.siamese(embedder)
    model.compile(keras.optimizers.Adam(3e-3), training.ContrastiveLoss(0.1), jit_compile=False)
    arrays = []
    for side in zip(*words, strict=True):
        rows, _ = task.framed("texts", tok.encode_batch(list(side)), truncate=False)
        ids = np.zeros((4, max(map(len, rows))), "int32")
        for row, text in zip(ids, rows, strict=True):
            row[: len(text)] = text
        arrays += [ids, ids != tok.pad_id]
    x = [np.tile(array, (4, 1)) for array in arrays]
    y = np.tile(np.arange(4), 4)  # equal pairs in a batch are not negatives of each other
    model.fit(x, y, batch_size=8, epochs=20, verbose=0)
    similarity = task.similarity(*map(list, zip(*words, strict=True)))
    np.testing.assert_array_equal(similarity.argmax(axis=1), np.arange(4))


def test_invalid_arguments_raise_error():
    with pytest.raises(InputError, match="temperature"):
        training.ContrastiveLoss(0.0)
    with pytest.raises(InputError, match=r"y_pred.*\(3, 4\)"):
        training.ContrastiveLoss()(np.arange(3), np.ones((3, 4), "float32"))
    with pytest.raises(InputError, match="embedder"):
        training.siamese(models.causal_lm(models.preset("llama-tiny", num_layers=1)))
    with pytest.raises(InputError, match="num_texts"):
        embedder = models.sentence_embedder(models.preset("minilm-tiny", num_layers=1))
        training.siamese(embedder, 1)
