"""Test sentence-pair batches: contents of rows, and that draws are reproducible."""

import collections

import numpy as np
import pytest

from keras_llm import data, tokenizers
from keras_llm.errors import InputError

# Each sentence contains the numbers of its document and of itself.
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
    covered = data.sentence_pair_dataset(pairs, tok, **{"batch_size": 8, "seed": 3, **options})
    return [
        ({k: v.numpy() for k, v in x.items()}, {k: v.numpy() for k, v in y.items()})
        for x, y in covered
    ]


def test_passages_are_consecutive_and_cover_documents(pairs, tok):
    texts = collections.defaultdict(str)
    for first, second, number in zip(*pairs, strict=True):
        assert 0 < len(first) <= 14 and 0 < len(second) <= 14
        text = tok.decode(first) + " " + tok.decode(second)
        texts[number] += " " + text
    for number, document in enumerate(DOCUMENTS):
        text = " ".join(tok.decode(tok.encode(document)).split())
        covered = " ".join(texts[number].split())
        assert text.startswith(covered)
        assert text[len(covered) :].count("says") <= 1  # only an unpaired last sentence is missing
    assert (np.diff(pairs.document) >= 0).all()


def test_rows_are_two_passages_and_half_are_random_pairs(pairs, tok):
    true_pairs = {(tuple(a), tuple(b)) for a, b in zip(pairs.first, pairs.second, strict=True)}
    documents_of = collections.defaultdict(set)
    for a, b, number in zip(*pairs, strict=True):
        documents_of[tuple(a)].add(number)
        documents_of[tuple(b)].add(number)
    labels, num_masked, num_tokens = [], 0, 0
    for x, y in batches(pairs, tok, epochs=30, rate=0.2):
        ids = x["token_ids"].copy()
        for row, (positions, tokens) in enumerate(
            zip(x["mask_positions"], y["tokens"], strict=True)
        ):
            count = (tokens != tok.pad_id).sum()
            ids[row, positions[:count]] = tokens[:count]
            num_masked += count
        for row, padding_mask, segments, label in zip(
            ids, x["padding_mask"], x["segment_ids"], y["next_sentence"], strict=True
        ):
            length = padding_mask.sum()
            assert padding_mask[:length].all() and (row[length:] == tok.pad_id).all()
            begin = int(segments.argmax())
            assert (segments == (np.arange(len(row)) >= begin) * padding_mask).all()
            assert row[0] == tok.bos_id and row[begin - 1] == tok.eos_id == row[length - 1]
            first, second = tuple(row[1 : begin - 1]), tuple(row[begin : length - 1])
            num_tokens += len(first) + len(second)
            if label == 0:
                assert (first, second) in true_pairs
            else:
                assert not documents_of[first] & documents_of[second]
            labels.append(label)
    assert np.mean(labels) == pytest.approx(0.5, abs=0.05)
    assert num_masked / num_tokens == pytest.approx(0.2, abs=0.02)


def test_draws_depend_only_on_seed_epoch_and_step(pairs, tok):
    def same(one, other):
        return all(
            np.array_equal(a[k], b[k])
            for pair in zip(one, other, strict=True)
            for a, b in zip(*pair, strict=True)
            for k in a
        )

    full = batches(pairs, tok, epochs=2)
    steps = len(pairs.first) // 8
    assert len(full) == 2 * steps and same(full, batches(pairs, tok, epochs=2))
    assert same(full[:steps], batches(pairs, tok))
    assert not same(full[:1], full[steps : steps + 1])
    assert not same(full[:1], batches(pairs, tok, seed=4)[:1])
    later = data.sentence_pair_dataset(pairs, tok, 8, epochs=2, seed=3).skip(steps + 1)
    assert same(
        full[steps + 1 :],
        [tuple({k: v.numpy() for k, v in part.items()} for part in pair) for pair in later],
    )
    plain = batches(pairs, tok, shuffle=False)
    first = [tuple(ids) for ids in pairs.first]
    assert plain[0][0]["token_ids"].shape[0] == 8 and len(set(first[:8])) == 8


def test_invalid_arguments_raise_error(pairs, tok):
    for documents, length, message in (
        (DOCUMENTS, 4, "`sequence_length` of 4"),
        (DOCUMENTS[:1], 32, "two documents"),
        (["One sentence"] * 3, 32, "two documents"),
    ):
        with pytest.raises(InputError, match=message):
            data.sentence_pairs(documents, tok, length)
    with pytest.raises(InputError, match="too few for one batch of 4096"):
        data.sentence_pair_dataset(pairs, tok, 4096)
    with pytest.raises(InputError, match="`rate`"):
        data.sentence_pair_dataset(pairs, tok, 8, rate=1.0)
