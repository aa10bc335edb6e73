"""Test masked-LM batches: which tokens are masked, and that masking is reproducible."""

import numpy as np
import pytest

from keras_llm import data, tokenizers
from keras_llm.errors import InputError

TEXTS = [f"unwanted running of {word} and unbelievable jumping {i}" for i, word in
         enumerate(["films", "stories", "people", "music"] * 60)]  # fmt: skip


@pytest.fixture(scope="module")
def tok():
    return tokenizers.WordPiece.train(TEXTS, 90)


@pytest.fixture(scope="module")
def stream(tok):
    return data.encode_documents(TEXTS, tok)


def batches(stream, tok, **options):
    options = {"sequence_length": 32, "batch_size": 4, "seed": 3, **options}
    return to_numpy(data.masked_dataset(stream, tok, **options))


def to_numpy(dataset):
    return [({k: v.numpy() for k, v in x.items()}, y.numpy()) for x, y in dataset]


def unmask(x, y, pad_id):
    """Return the windows before masking, and which tokens were chosen."""
    ids, chosen = x["token_ids"].copy(), np.zeros(x["token_ids"].shape, bool)
    for row, (positions, targets) in enumerate(zip(x["mask_positions"], y, strict=True)):
        for position, target in zip(positions, targets, strict=True):
            if target != pad_id:
                ids[row, position], chosen[row, position] = target, True
    return ids, chosen


def test_windows_are_consecutive_between_begin_and_end_tokens(stream, tok):
    text = stream[stream != tok.bos_id]
    masked = batches(stream, tok, shuffle=False)
    rows = np.concatenate([unmask(x, y, tok.pad_id)[0] for x, y in masked])
    assert (rows[:, 0] == tok.bos_id).all() and (rows[:, -1] == tok.eos_id).all()
    inner = rows[:, 1:-1].reshape(-1)
    np.testing.assert_array_equal(inner, text[: len(inner)])
    assert len(text) - len(inner) <= 4 * 30
    assert all(x["padding_mask"].all() for x, _ in masked)


def test_masking_rates_and_replacements(stream, tok):
    is_text, _ = data.text_tokens(tok)
    replacements = {"mask": 0, "same": 0, "other": 0}
    num_text_tokens = num_chosen = 0
    for x, y in batches(stream, tok, epochs=40, rate=0.2):
        ids, chosen = unmask(x, y, tok.pad_id)
        assert is_text[ids[chosen]].all()
        np.testing.assert_array_equal(ids[~chosen], x["token_ids"][~chosen])
        new = x["token_ids"][chosen]
        replacements["mask"] += (new == tok.mask_id).sum()
        replacements["same"] += (new == ids[chosen]).sum()
        replacements["other"] += ((new != tok.mask_id) & (new != ids[chosen])).sum()
        assert is_text[new[new != tok.mask_id]].all()
        num_text_tokens, num_chosen = (
            num_text_tokens + is_text[ids].sum(),
            num_chosen + chosen.sum(),
        )
    assert num_chosen / num_text_tokens == pytest.approx(0.2, abs=0.01)
    shares = np.array(list(replacements.values())) / num_chosen
    same_by_chance = 0.1 / is_text.sum()
    expected = [0.8, 0.1 + same_by_chance, 0.1 - same_by_chance]
    np.testing.assert_allclose(shares, expected, atol=0.012)


def test_whole_words_are_masked(stream, tok):
    def count_words(**options):
        partly_masked = with_pieces = 0
        for x, y in batches(stream, tok, **options):
            ids, chosen = unmask(x, y, tok.pad_id)
            for row, flags in zip(ids, chosen, strict=True):
                words = []
                for token, flag in zip(row, flags, strict=True):
                    if tok.token(int(token)).startswith("##") and words:
                        words[-1].append(flag)
                    else:
                        words.append([flag])
                with_pieces += sum(len(word) > 1 for word in words)
                partly_masked += sum(len(set(word)) > 1 for word in words)
        return partly_masked, with_pieces

    partly_masked, with_pieces = count_words()
    assert with_pieces > 100 and partly_masked == 0
    assert count_words(whole_words=False)[0] > 20


def test_masking_depends_on_seed_epoch_and_step(stream, tok):
    def same(first, second):
        return all(
            x["token_ids"].tobytes() == other["token_ids"].tobytes() and (y == z).all()
            for (x, y), (other, z) in zip(first, second, strict=True)
        )

    two = batches(stream, tok, epochs=2)
    half = len(two) // 2
    assert same(two, batches(stream, tok, epochs=2))
    assert same(two[:half], batches(stream, tok))
    later = data.masked_dataset(stream, tok, 32, 4, epochs=2, seed=3).skip(half + 2)
    assert same(
        two[half + 2 :], [({k: v.numpy() for k, v in x.items()}, y.numpy()) for x, y in later]
    )
    assert not same(two[:1], batches(stream, tok, seed=4)[:1])
    in_order = batches(stream, tok, epochs=2, shuffle=False)
    assert not same(in_order[:1], in_order[half : half + 1])  # same window, other mask


def test_text_tokens_of_byte_pair():
    tok = tokenizers.BytePair.train(TEXTS, 300)
    is_text, is_start = data.text_tokens(tok)
    words = [tok.token(i) for i in range(tok.vocabulary_size) if is_text[i] and is_start[i]]
    continuations = [
        tok.token(i) for i in range(tok.vocabulary_size) if is_text[i] and not is_start[i]
    ]
    assert len(words) > 5 and all(piece.startswith("Ġ") for piece in words)
    assert not any(piece.startswith("Ġ") for piece in continuations)
    assert not is_text[tok.pad_id] and not is_text[tok.eos_id]


def test_invalid_arguments_raise_error(stream, tok):
    for options, message in (
        ({"rate": 1.0}, "rate"),
        ({"sequence_length": 2}, "sequence_length"),
        ({"batch_size": 10_000}, "too few"),
    ):
        with pytest.raises(InputError, match=message):
            batches(stream, tok, **options)
    with pytest.raises(InputError, match="no mask token"):
        data.masked_dataset(stream, tokenizers.BytePair.train(TEXTS, 300), 32, 4)
