"""Documents that share a row: each as if it stood alone."""

import itertools

import numpy as np
import pytest

from keras_llm import data, models, training
from keras_llm.errors import InputError

V, T, BOS, EOS, PAD = 40, 16, 1, 2, 0


@pytest.fixture(scope="module")
def stream():
    random = np.random.default_rng(0)
    lengths = [1, 40, *random.integers(1, 12, 30)]  # one of many windows, others of a part of one
    return np.concatenate([[BOS, *random.integers(3, V, n), EOS] for n in lengths]).astype("int32")


def pieces(row):
    """The stretches of a row that belong to one document, from their begin tokens."""
    begins = [0, *[i for i in range(1, len(row)) if row[i] == BOS], len(row)]
    return [(a, b) for a, b in itertools.pairwise(begins) if b > a]


def test_segments_and_positions_begin_with_each_document(stream):
    found = data.packed_dataset(stream, T, 4, BOS, PAD, seed=1, segments=True)
    plain = data.packed_dataset(stream, T, 4, BOS, PAD, seed=1)
    many = 0
    for (inputs, targets), (ids, same_targets) in zip(found, plain, strict=True):
        np.testing.assert_array_equal(inputs["token_ids"], ids)
        np.testing.assert_array_equal(targets, same_targets)
        for row, segments, positions in zip(
            ids.numpy(), inputs["segment_ids"].numpy(), inputs["positions"].numpy(), strict=True
        ):
            many += len(pieces(row)) > 2
            for number, (begin, end) in enumerate(pieces(row)):
                assert positions[begin:end].tolist() == list(range(end - begin))
                assert set(segments[begin:end]) == {number + int(row[0] == BOS)}
    assert many > 5


@pytest.mark.parametrize(
    "changes",
    [{"sliding_window": 5}, {"position": models.Alibi()}, {"position": "learned"}],
    ids=["rotary", "alibi", "learned"],
)
def test_the_loss_of_a_packed_row_is_that_of_its_documents_alone(stream, changes):
    config = models.preset("llama-tiny", vocabulary_size=V, initializer_range=0.3, **changes)
    model = models.causal_lm(config)
    trainer = training.LanguageModelTrainer(model, ignore_id=PAD)
    trainer.compile("sgd", jit_compile=False)
    packed = data.packed_dataset(stream, T, 3, BOS, PAD, segments=True).take(1)
    ((inputs, targets),) = [({k: v.numpy() for k, v in x.items()}, y.numpy()) for x, y in packed]
    nats = count = 0
    for row, wanted in zip(inputs["token_ids"], targets, strict=True):
        for begin, end in pieces(row):
            logits = np.asarray(model(row[None, begin:end]), "float64")[0]
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            for place, target in enumerate(wanted[begin:end]):
                if target != PAD:
                    nats -= log_p[place, target]
                    count += 1
    assert trainer.evaluate(packed, verbose=0)[0] == pytest.approx(nats / count, rel=1e-5)
    rows = stream[: 3 * T + 1]
    measured = training.evaluate_language_model(model, rows, 99, BOS, T, segments=True)
    assert measured["tokens"] == count
    assert measured["nats_per_token"] == pytest.approx(nats / count, rel=1e-5)
    mixed = training.evaluate_language_model(model, rows, 99, BOS, T)
    assert mixed["nats_per_token"] != pytest.approx(nats / count, rel=1e-3)


def test_what_cannot_be_kept_apart_is_refused(stream):
    with pytest.raises(InputError, match="begin token"):
        data.packed_dataset(stream, T, 2, -1, PAD, segments=True)
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=V))
    trainer = training.LanguageModelTrainer(model)
    with pytest.raises(InputError, match="segment_ids"):
        trainer({"token_ids": np.zeros((1, 4), "int32")})
