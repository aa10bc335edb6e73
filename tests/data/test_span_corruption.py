"""Test infilling and span corruption: undoing them restores the text."""

import numpy as np
import pytest

from keras_llm import data
from keras_llm.errors import InputError

PAD, BOS, EOS, PRE, SUF, MID = range(6)
T = 24


@pytest.fixture(scope="module")
def stream():
    random = np.random.default_rng(0)
    lengths = [200, 1, *random.integers(2, 60, 40)]
    documents = [[BOS, *random.integers(50, 90, n), EOS] for n in lengths]
    return np.concatenate(documents).astype("int32")


def infilled(stream, **options):
    options = {"epochs": 1, "seed": 3, **options}
    dataset = data.infilling_dataset(stream, (PRE, SUF, MID), T, 4, BOS, EOS, PAD, **options)
    return [(x.numpy(), y.numpy()) for x, y in dataset]


def corrupted(stream, length=T, **options):
    options = {"seed": 3, "rate": 0.3, **options}
    sentinels = list(range(100, 120))
    dataset = data.span_corruption_dataset(stream, sentinels, length, 4, BOS, EOS, PAD, **options)
    return [({k: v.numpy() for k, v in x.items()}, y.numpy()) for x, y in dataset]


def undo_infilling(row):
    """Return a row in its original order, and where it was cut (None if it was not)."""
    row = [token for token in row if token != PAD]
    if MID not in row:
        return row, None
    pre, suf, mid = (row.index(token) for token in (PRE, SUF, MID))
    end = mid + row[mid:].index(EOS)
    middle = row[mid + 1 : end]
    text = row[pre + 1 : suf] + middle + row[suf + 1 : mid]
    return row[:pre] + text + row[end:], (pre, len(text), suf - pre - 1, len(middle))


def longest_document(window):
    documents = "".join("x" if token not in (BOS, EOS) else " " for token in window).split()
    return max(map(len, documents))


def test_undoing_infilling_restores_windows(stream):
    size = T - 3
    windows = [tuple(stream[i * size : (i + 1) * size]) for i in range((len(stream) - 1) // size)]
    num_infilled, cuts = 0, []
    batches = infilled(stream, epochs=20, rate=0.6)
    for x, y in batches:
        for inputs, targets in zip(x, y, strict=True):
            ids = [*inputs, targets[-1]]
            np.testing.assert_array_equal(
                targets, np.where(np.isin(ids[1:], [BOS, PRE, SUF, MID]), PAD, ids[1:])
            )
            text, cut = undo_infilling(ids)
            window = tuple(text)
            if cut is None:
                assert window in windows
                continue
            num_infilled += 1
            begin, length, *_ = cut
            assert length == longest_document(window)
            # An end token follows the middle, whether or not the document ends there.
            without = window[: begin + length] + window[begin + length + 1 :]
            assert window in windows or without in windows
            cuts.append((cut[2] / length, cut[3] / length))
    assert num_infilled / (4 * len(batches)) == pytest.approx(0.6, abs=0.05)
    prefix, middle = np.mean(cuts, axis=0)  # two uniform cuts give three equal parts on average
    assert prefix == pytest.approx(1 / 3, abs=0.04) and middle == pytest.approx(1 / 3, abs=0.04)


def test_infilling_rates_of_zero_and_one(stream):
    assert not any((x == MID).any() for x, _ in infilled(stream, rate=0.0))
    assert all((x == MID).any(axis=1).all() for x, _ in infilled(stream, rate=1.0))


def test_undoing_span_corruption_restores_stream(stream):
    text = stream[stream != BOS]
    batches = corrupted(stream, shuffle=False)
    rows = []
    for x, y in batches:
        assert x["encoder_token_ids"].shape == (4, T)
        np.testing.assert_array_equal(x["decoder_token_ids"][:, 1:], y[:, :-1])
        assert (x["decoder_token_ids"][:, 0] == PAD).all()
        for source, target in zip(x["encoder_token_ids"].tolist(), y.tolist(), strict=True):
            assert source.pop() == target.pop() == EOS
            sentinels = [token for token in source if token >= 100]
            assert sentinels == [token for token in target if token >= 100]
            assert sentinels == list(range(100, 100 + len(sentinels))) and source[0] < 100
            for sentinel, next_sentinel in zip(sentinels, [*sentinels[1:], None], strict=True):
                begin = target.index(sentinel)
                end = target.index(next_sentinel) if next_sentinel else len(target)
                assert end - begin > 1
                position = source.index(sentinel)
                source[position : position + 1] = target[begin + 1 : end]
            rows += source
    assert len(text) - len(rows) < 4 * 30
    np.testing.assert_array_equal(rows, text[: len(rows)])


@pytest.mark.parametrize("length, rate, mean", [(512, 0.15, 3.0), (64, 0.5, 8.0), (4, 0.3, 1.0)])
def test_span_corruption_rate_and_mean_span(length, rate, mean):
    stream = np.arange(200, 200 + 8 * 4 * length, dtype="int32")
    dataset = data.span_corruption_dataset(
        stream, list(range(100, 200)), length, 4, BOS, EOS, PAD, rate=rate, mean_span=mean
    )
    x, y = next(iter(dataset.as_numpy_iterator()))
    sentinels = int(((y[0] >= 100) & (y[0] < 200)).sum())
    num_masked = y.shape[1] - 1 - sentinels
    window = num_masked + length - 1 - sentinels
    assert num_masked == max(1, round(window * rate)) and sentinels == max(
        1, round(num_masked / mean)
    )
    assert x["encoder_token_ids"].shape == (4, length)


def test_span_partitions_are_uniform():
    """6 masked tokens can be split into 3 spans in 10 ways."""
    stream = np.arange(200, 200 + 17 * 4 * 400, dtype="int32")
    partitions = {}
    for _, y in corrupted(stream, 15, rate=6 / 17, mean_span=2.0):
        for row in y:
            positions = [i for i, token in enumerate(row) if token < 200]
            partition = tuple(np.diff(positions) - 1)
            partitions[partition] = partitions.get(partition, 0) + 1
    assert all(sum(partition) == 6 for partition in partitions) and len(partitions) == 10
    counts = np.array(list(partitions.values()))
    assert (np.abs(counts / counts.sum() - 0.1) < 0.03).all()


@pytest.mark.parametrize("make", [infilled, corrupted])
def test_draws_depend_on_seed_epoch_and_step(stream, make):
    def key(batches):
        return [y.tobytes() for _, y in batches]

    two = key(make(stream, epochs=2))
    half = len(two) // 2
    assert two == key(make(stream, epochs=2)) and two[:half] == key(make(stream))
    assert two[0] != key(make(stream, seed=4))[0]
    in_order = key(make(stream, epochs=2, shuffle=False))
    assert in_order[:half] != in_order[half:]  # same windows, other draws


def test_invalid_arguments_raise_error(stream):
    for options, message in (({"rate": 1.5}, "rate"), ({"rate": -0.1}, "rate")):
        with pytest.raises(InputError, match=message):
            infilled(stream, **options)
    with pytest.raises(InputError, match="sentinels"):
        data.infilling_dataset(stream, (PRE, PRE, MID), T, 4, BOS, EOS, PAD)
    with pytest.raises(InputError, match="sequence_length"):
        data.infilling_dataset(stream, (PRE, SUF, MID), 3, 4, BOS, EOS, PAD)
    for options, message in (({"rate": 1.0}, "rate"), ({"mean_span": 0.5}, "mean_span")):
        with pytest.raises(InputError, match=message):
            corrupted(stream, **options)
    with pytest.raises(InputError, match="sequence_length"):
        corrupted(stream, 2)
    with pytest.raises(InputError, match="at least 28 token ids"):
        data.span_corruption_dataset(stream, [100], 512, 1, BOS, EOS, PAD)
