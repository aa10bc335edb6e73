"""Middles and spans that are told last: put back, the text is what it was."""

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
    found = data.infilling_dataset(stream, (PRE, SUF, MID), T, 4, BOS, EOS, PAD, **options)
    return [(x.numpy(), y.numpy()) for x, y in found]


def corrupted(stream, length=T, **options):
    options = {"seed": 3, "rate": 0.3, **options}
    marks = list(range(100, 120))
    found = data.span_corruption_dataset(stream, marks, length, 4, BOS, EOS, PAD, **options)
    return [({k: v.numpy() for k, v in x.items()}, y.numpy()) for x, y in found]


def put_back(row):
    """A row in the order of its text, whether it was told in another, and where it was cut."""
    row = [token for token in row if token != PAD]
    if MID not in row:
        return row, None
    pre, suf, mid = (row.index(token) for token in (PRE, SUF, MID))
    end = mid + row[mid:].index(EOS)
    middle = row[mid + 1 : end]
    text = row[pre + 1 : suf] + middle + row[suf + 1 : mid]
    return row[:pre] + text + row[end:], (pre, len(text), suf - pre - 1, len(middle))


def longest(window):
    runs = "".join("x" if token not in (BOS, EOS) else " " for token in window).split()
    return max(map(len, runs))


def test_a_window_put_back_is_the_window(stream):
    room = T - 3
    windows = [tuple(stream[i * room : (i + 1) * room]) for i in range((len(stream) - 1) // room)]
    told, cuts = 0, []
    found = infilled(stream, epochs=20, rate=0.6)
    for x, y in found:
        for inputs, targets in zip(x, y, strict=True):
            ids = [*inputs, targets[-1]]
            np.testing.assert_array_equal(
                targets, np.where(np.isin(ids[1:], [BOS, PRE, SUF, MID]), PAD, ids[1:])
            )
            text, cut = put_back(ids)
            window = tuple(text)
            if cut is None:
                assert window in windows
                continue
            told += 1
            begin, length, *_ = cut
            assert length == longest(window)
            # An end token stands after the middle, whether the document ends there or not.
            without = window[: begin + length] + window[begin + length + 1 :]
            assert window in windows or without in windows
            cuts.append((cut[2] / length, cut[3] / length))
    assert told / (4 * len(found)) == pytest.approx(0.6, abs=0.05)
    prefix, middle = np.mean(cuts, axis=0)  # of two even cuts each part is a third
    assert prefix == pytest.approx(1 / 3, abs=0.04) and middle == pytest.approx(1 / 3, abs=0.04)


def test_a_share_of_none_and_of_all(stream):
    assert not any((x == MID).any() for x, _ in infilled(stream, rate=0.0))
    assert all((x == MID).any(axis=1).all() for x, _ in infilled(stream, rate=1.0))


def test_spans_put_back_are_the_window(stream):
    text = stream[stream != BOS]
    found = corrupted(stream, shuffle=False)
    rows = []
    for x, y in found:
        assert x["encoder_token_ids"].shape == (4, T)
        np.testing.assert_array_equal(x["decoder_token_ids"][:, 1:], y[:, :-1])
        assert (x["decoder_token_ids"][:, 0] == PAD).all()
        for source, target in zip(x["encoder_token_ids"].tolist(), y.tolist(), strict=True):
            assert source.pop() == target.pop() == EOS
            marks = [token for token in source if token >= 100]
            assert marks == [token for token in target if token >= 100]
            assert marks == list(range(100, 100 + len(marks))) and source[0] < 100
            for mark, follower in zip(marks, [*marks[1:], None], strict=True):
                begin = target.index(mark)
                end = target.index(follower) if follower else len(target)
                assert end - begin > 1
                place = source.index(mark)
                source[place : place + 1] = target[begin + 1 : end]
            rows += source
    assert len(text) - len(rows) < 4 * 30
    np.testing.assert_array_equal(rows, text[: len(rows)])


@pytest.mark.parametrize("length, rate, mean", [(512, 0.15, 3.0), (64, 0.5, 8.0), (4, 0.3, 1.0)])
def test_as_much_is_left_out_as_was_asked_for(length, rate, mean):
    stream = np.arange(200, 200 + 8 * 4 * length, dtype="int32")
    found = data.span_corruption_dataset(
        stream, list(range(100, 200)), length, 4, BOS, EOS, PAD, rate=rate, mean_span=mean
    )
    x, y = next(iter(found.as_numpy_iterator()))
    marks = int(((y[0] >= 100) & (y[0] < 200)).sum())
    hidden = y.shape[1] - 1 - marks
    window = hidden + length - 1 - marks
    assert hidden == max(1, round(window * rate)) and marks == max(1, round(hidden / mean))
    assert x["encoder_token_ids"].shape == (4, length)


def test_every_partition_is_as_likely():
    """Of 6 tokens left out in 3 spans there are 10 ways."""
    stream = np.arange(200, 200 + 17 * 4 * 400, dtype="int32")
    ways = {}
    for _, y in corrupted(stream, 15, rate=6 / 17, mean_span=2.0):
        for row in y:
            places = [i for i, token in enumerate(row) if token < 200]
            way = tuple(np.diff(places) - 1)
            ways[way] = ways.get(way, 0) + 1
    assert all(sum(way) == 6 for way in ways) and len(ways) == 10
    counts = np.array(list(ways.values()))
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
    assert in_order[:half] != in_order[half:]  # the same windows, drawn otherwise


def test_arguments_out_of_range_are_named(stream):
    for options, words in (({"rate": 1.5}, "rate"), ({"rate": -0.1}, "rate")):
        with pytest.raises(InputError, match=words):
            infilled(stream, **options)
    with pytest.raises(InputError, match="sentinels"):
        data.infilling_dataset(stream, (PRE, PRE, MID), T, 4, BOS, EOS, PAD)
    with pytest.raises(InputError, match="sequence_length"):
        data.infilling_dataset(stream, (PRE, SUF, MID), 3, 4, BOS, EOS, PAD)
    for options, words in (({"rate": 1.0}, "rate"), ({"mean_span": 0.5}, "mean_span")):
        with pytest.raises(InputError, match=words):
            corrupted(stream, **options)
    with pytest.raises(InputError, match="sequence_length"):
        corrupted(stream, 2)
    with pytest.raises(InputError, match="at least 28 token ids"):
        data.span_corruption_dataset(stream, [100], 512, 1, BOS, EOS, PAD)
