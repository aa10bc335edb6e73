"""Pairs of passages: what stands in a row, and that draws depend on the place alone."""

import collections

import numpy as np
import pytest

from keras_llm import data, tokenizers
from keras_llm.errors import InputError

# A sentence says of which document it is, and which one of it.
DOCUMENTS = [
    " ".join(f"text {number} says {sentence} here." for sentence in range(3 + number % 9))
    for number in range(40)
]


@pytest.fixture(scope="module")
def tok():
    return tokenizers.WordPiece.train(DOCUMENTS, 120)


@pytest.fixture(scope="module")
def pairs(tok):
    return data.sentence_pairs(DOCUMENTS, tok, 32)


def batches(pairs, tok, **options):
    found = data.sentence_pair_dataset(pairs, tok, **{"batch_size": 8, "seed": 3, **options})
    return [
        ({k: v.numpy() for k, v in x.items()}, {k: v.numpy() for k, v in y.items()})
        for x, y in found
    ]


def test_passages_follow_each_other_and_leave_out_little(pairs, tok):
    kept = collections.defaultdict(str)
    for first, second, number in zip(*pairs, strict=True):
        assert 0 < len(first) <= 14 and 0 < len(second) <= 14
        text = tok.decode(first) + " " + tok.decode(second)
        kept[number] += " " + text
    for number, document in enumerate(DOCUMENTS):
        text = " ".join(tok.decode(tok.encode(document)).split())
        found = " ".join(kept[number].split())
        assert text.startswith(found)
        assert text[len(found) :].count("says") <= 1  # a last sentence that is alone
    assert (np.diff(pairs.document) >= 0).all()


def test_rows_are_two_framed_passages_and_half_are_exchanged(pairs, tok):
    known = {(tuple(a), tuple(b)) for a, b in zip(pairs.first, pairs.second, strict=True)}
    owners = collections.defaultdict(set)
    for a, b, number in zip(*pairs, strict=True):
        owners[tuple(a)].add(number)
        owners[tuple(b)].add(number)
    labels, hidden, text = [], 0, 0
    for x, y in batches(pairs, tok, epochs=30, rate=0.2):
        ids = x["token_ids"].copy()
        for row, (places, tokens) in enumerate(zip(x["mask_positions"], y["tokens"], strict=True)):
            count = (tokens != tok.pad_id).sum()
            ids[row, places[:count]] = tokens[:count]
            hidden += count
        for row, known_places, segments, label in zip(
            ids, x["padding_mask"], x["segment_ids"], y["next_sentence"], strict=True
        ):
            length = known_places.sum()
            assert known_places[:length].all() and (row[length:] == tok.pad_id).all()
            begin = int(segments.argmax())
            assert (segments == (np.arange(len(row)) >= begin) * known_places).all()
            assert row[0] == tok.bos_id and row[begin - 1] == tok.eos_id == row[length - 1]
            first, second = tuple(row[1 : begin - 1]), tuple(row[begin : length - 1])
            text += len(first) + len(second)
            if label == 0:
                assert (first, second) in known
            else:
                assert not owners[first] & owners[second]
            labels.append(label)
    assert np.mean(labels) == pytest.approx(0.5, abs=0.05)
    assert hidden / text == pytest.approx(0.2, abs=0.02)


def test_draws_depend_on_seed_epoch_and_step_alone(pairs, tok):
    def same(one, other):
        return all(
            np.array_equal(a[k], b[k])
            for pair in zip(one, other, strict=True)
            for a, b in zip(*pair, strict=True)
            for k in a
        )

    whole = batches(pairs, tok, epochs=2)
    steps = len(pairs.first) // 8
    assert len(whole) == 2 * steps and same(whole, batches(pairs, tok, epochs=2))
    assert same(whole[:steps], batches(pairs, tok))
    assert not same(whole[:1], whole[steps : steps + 1])
    assert not same(whole[:1], batches(pairs, tok, seed=4)[:1])
    later = data.sentence_pair_dataset(pairs, tok, 8, epochs=2, seed=3).skip(steps + 1)
    assert same(
        whole[steps + 1 :],
        [tuple({k: v.numpy() for k, v in part.items()} for part in pair) for pair in later],
    )
    plain = batches(pairs, tok, shuffle=False)
    first = [tuple(ids) for ids in pairs.first]
    assert plain[0][0]["token_ids"].shape[0] == 8 and len(set(first[:8])) == 8


def test_what_cannot_be_paired_is_refused(pairs, tok):
    for documents, length, words in (
        (DOCUMENTS, 4, "`sequence_length` of 4"),
        (DOCUMENTS[:1], 32, "two documents"),
        (["One sentence"] * 3, 32, "two documents"),
    ):
        with pytest.raises(InputError, match=words):
            data.sentence_pairs(documents, tok, length)
    with pytest.raises(InputError, match="too few for one batch of 4096"):
        data.sentence_pair_dataset(pairs, tok, 4096)
    with pytest.raises(InputError, match="`rate`"):
        data.sentence_pair_dataset(pairs, tok, 8, rate=1.0)
