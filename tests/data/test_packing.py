"""Test packed rows with segments: documents that share a row do not affect each other."""

import itertools

import numpy as np
import pytest

from keras_llm import data, models, training
from keras_llm.errors import InputError

V, T, BOS, EOS, PAD = 40, 16, 1, 2, 0


@pytest.fixture(scope="module")
def stream():
    random = np.random.default_rng(0)
    lengths = [1, 40, *random.integers(1, 12, 30)]  # longer and shorter than a window
    return np.concatenate([[BOS, *random.integers(3, V, n), EOS] for n in lengths]).astype("int32")


def document_spans(row):
    """Return the (begin, end) of each document in a row."""
    begins = [0, *[i for i in range(1, len(row)) if row[i] == BOS], len(row)]
    return [(a, b) for a, b in itertools.pairwise(begins) if b > a]


def test_segments_and_positions_restart_at_documents(stream):
    packed = data.packed_dataset(stream, T, 4, BOS, PAD, seed=1, segments=True)
    plain = data.packed_dataset(stream, T, 4, BOS, PAD, seed=1)
    rows_with_several = 0
    for (inputs, targets), (ids, same_targets) in zip(packed, plain, strict=True):
        np.testing.assert_array_equal(inputs["token_ids"], ids)
        np.testing.assert_array_equal(targets, same_targets)
        for row, segments, positions in zip(
            ids.numpy(), inputs["segment_ids"].numpy(), inputs["positions"].numpy(), strict=True
        ):
            rows_with_several += len(document_spans(row)) > 2
            for number, (begin, end) in enumerate(document_spans(row)):
                assert positions[begin:end].tolist() == list(range(end - begin))
                assert set(segments[begin:end]) == {number + int(row[0] == BOS)}
    assert rows_with_several > 5


@pytest.mark.parametrize(
    "changes",
    [{"sliding_window": 5}, {"position": models.Alibi()}, {"position": "learned"}],
    ids=["rotary", "alibi", "learned"],
)
def test_loss_of_packed_rows_matches_separate_documents(stream, changes):
    config = models.preset("llama-tiny", vocabulary_size=V, initializer_range=0.3, **changes)
    model = models.causal_lm(config)
    trainer = training.LanguageModelTrainer(model, ignore_id=PAD)
    trainer.compile("sgd", jit_compile=False)
    packed = data.packed_dataset(stream, T, 3, BOS, PAD, segments=True).take(1)
    ((inputs, targets),) = [({k: v.numpy() for k, v in x.items()}, y.numpy()) for x, y in packed]
    total_nats = count = 0
    for row, row_targets in zip(inputs["token_ids"], targets, strict=True):
        for begin, end in document_spans(row):
            logits = np.asarray(model(row[None, begin:end]), "float64")[0]
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            for position, target in enumerate(row_targets[begin:end]):
                if target != PAD:
                    total_nats -= log_p[position, target]
                    count += 1
    assert trainer.evaluate(packed, verbose=0)[0] == pytest.approx(total_nats / count, rel=1e-5)
    rows = stream[: 3 * T + 1]
    measured = training.evaluate_language_model(model, rows, 99, BOS, T, segments=True)
    assert measured["tokens"] == count
    assert measured["nats_per_token"] == pytest.approx(total_nats / count, rel=1e-5)
    mixed = training.evaluate_language_model(model, rows, 99, BOS, T)
    assert mixed["nats_per_token"] != pytest.approx(total_nats / count, rel=1e-3)


def test_segments_without_required_inputs_raise_error(stream):
    with pytest.raises(InputError, match="begin token"):
        data.packed_dataset(stream, T, 2, -1, PAD, segments=True)
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=V))
    trainer = training.LanguageModelTrainer(model)
    with pytest.raises(InputError, match="segment_ids"):
        trainer({"token_ids": np.zeros((1, 4), "int32")})
