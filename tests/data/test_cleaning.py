"""Test near-duplicate removal, contamination and PII redaction against slow references."""

import itertools
import random
import re

import pytest

from keras_llm import data
from keras_llm.errors import InputError


def ngrams(text, n):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


def make_similar_texts(count, num_words=60):
    """Return texts, each the previous one with a few words changed, to cover all similarities."""
    draw = random.Random(0)
    text, texts = [], []
    for i in range(count):
        if i % 8 == 0:
            text = [f"w{draw.randrange(4000)}" for _ in range(num_words)]
        text = [*text]
        for _ in range(draw.randrange(4)):
            text[draw.randrange(num_words)] = f"w{draw.randrange(4000)}"
        texts.append(" ".join(text))
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_match_all_pairs_comparison(threshold):
    texts = make_similar_texts(160)
    sets = [ngrams(text, 3) for text in texts]
    expected = []
    for grams, text in zip(sets, texts, strict=True):
        others = [other for other, _ in expected]
        if not any(len(grams & o) / len(grams | o) >= threshold for o in others):
            expected.append((grams, text))
    kept, dropped = data.without_near_duplicates(texts, threshold, words=3)
    assert 20 < len(expected) < 130
    missed = [text for text in kept if text not in {text for _, text in expected}]
    assert len(missed) <= 2  # MinHash may miss a pair near the threshold
    assert {text for _, text in expected} - set(kept) == set() or missed
    assert dropped == {"nearly repeated": len(texts) - len(kept)}


def test_near_duplicates_ignore_case_and_punctuation():
    texts = [
        "A short text.",
        "a SHORT text",
        "Another short text",
        "",
        "?!",
        "春眠不覺曉",
        "春眠不覺曉。",
    ]
    kept, dropped = data.without_near_duplicates(texts, 1.0)
    assert kept == ["A short text.", "Another short text", "", "春眠不覺曉"]
    assert dropped == {"nearly repeated": 3}
    assert data.without_near_duplicates(["a b", "c d"], 0.5) == (["a b", "c d"], {})


def test_contamination_matches_ngram_counts():
    train = ["one two three four five six", "seven eight nine"]
    held_out = ["zero One two, three four ten", "a b c d e", "x", "eight nine seven eight nine"]
    n = 3
    train_grams = set(itertools.chain(*(ngrams(text, n) for text in train)))
    grams = [[g for g in ngrams(text, n) if len(g) == n] for text in held_out]
    hits = [sum(gram in train_grams for gram in text_grams) for text_grams in grams]
    assert data.contamination(train, held_out, n) == {
        "texts": 3,
        "texts_with_a_known_run": sum(map(bool, hits)),
        "known_runs": sum(hits) / sum(map(len, grams)),
    }
    assert sum(hits) == 3
    assert data.contamination(train, ["x"], n)["known_runs"] == 0.0


PII = {
    "Mail jo.d+x@mail.example.co.uk!": ("Mail <EMAIL>!", "e-mail addresses"),
    "<a@b.org>": ("<<EMAIL>>", "e-mail addresses"),
    "from 192.168.10.254, or": ("from <IP>, or", "IP addresses"),
    "at 2001:db8::8a2e:370:7334": ("at <IP>", "IP addresses"),
    "card 4111 1111 1111 1111.": ("card <CARD>.", "card numbers"),
    "5500-0055-5555-5559": ("<CARD>", "card numbers"),
    "378282246310005": ("<CARD>", "card numbers"),
    "call +44 20 7946 0958 now": ("call <PHONE> now", "phone numbers"),
    "+1 (212) 555-0123": ("<PHONE>", "phone numbers"),
    "(212) 555-0123": ("<PHONE>", "phone numbers"),
    "212-555-0123": ("<PHONE>", "phone numbers"),
    "Tel. 030 1234567": ("Tel. <PHONE>", "phone numbers"),
    "电话 13812345678。": ("电话 <PHONE>。", "phone numbers"),
}
NOT_PII = [
    "4111 1111 1111 1112",  # wrong check digit
    "0000 0000 0000 0000",
    "on 2026-11-24 at 10:20:30",
    "256.1.1.1 and 1.2.3",
    "x[1::2], y[::2], std::end",
    "3.14159265358979",
    "1,234,567.89 of 1000000",
    "a@b and @name",
    "0x1F:0x2A",
    "years 1914-1918, pages 100 200 300",
]


@pytest.mark.parametrize("text", PII)
def test_pii_is_redacted(text):
    scrubbed, name = PII[text]
    assert data.scrub(text) == (scrubbed, {name: 1})


@pytest.mark.parametrize("text", NOT_PII)
def test_other_numbers_are_kept(text):
    assert data.scrub(text) == (text, {})


def test_scrub_texts_sums_counts():
    texts, counts = data.scrub_texts(["a@b.org c@d.org", "plain", "e@f.org 10.0.0.1"])
    assert texts == ["<EMAIL> <EMAIL>", "plain", "<EMAIL> <IP>"]
    assert counts == {"e-mail addresses": 3, "IP addresses": 1}


@pytest.mark.parametrize(
    "arguments, message", [({"threshold": 0.0}, "threshold"), ({"words": 0}, "words")]
)
def test_invalid_arguments_raise_error(arguments, message):
    with pytest.raises(InputError, match=message):
        data.without_near_duplicates(["a"], **arguments)
    with pytest.raises(InputError, match="words"):
        data.contamination(["a"], ["b"], words=0)
