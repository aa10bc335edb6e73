"""Near duplicates, contamination and personal numbers, against slow counting and known cases."""

import itertools
import random
import re

import pytest

from keras_llm import data
from keras_llm.errors import InputError


def runs(text, n):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


def variations(count, words=60):
    """Texts, each with a few words of the one before changed, so that all likenesses come up."""
    draw = random.Random(0)
    text, found = [], []
    for i in range(count):
        if i % 8 == 0:
            text = [f"w{draw.randrange(4000)}" for _ in range(words)]
        text = [*text]
        for _ in range(draw.randrange(4)):
            text[draw.randrange(words)] = f"w{draw.randrange(4000)}"
        found.append(" ".join(text))
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(threshold):
    texts = variations(160)
    sets = [runs(text, 3) for text in texts]
    expected = []
    for own, text in zip(sets, texts, strict=True):
        others = [other for other, _ in expected]
        if not any(len(own & o) / len(own | o) >= threshold for o in others):
            expected.append((own, text))
    kept, dropped = data.without_near_duplicates(texts, threshold, words=3)
    assert 20 < len(expected) < 130
    missed = [text for text in kept if text not in {text for _, text in expected}]
    assert len(missed) <= 2  # MinHash may miss a pair near the threshold
    assert {text for _, text in expected} - set(kept) == set() or missed
    assert dropped == {"nearly repeated": len(texts) - len(kept)}


def test_case_and_marks_do_not_count_and_short_texts_are_compared_whole():
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


def test_contamination_counts_known_runs():
    train = ["one two three four five six", "seven eight nine"]
    held_out = ["zero One two, three four ten", "a b c d e", "x", "eight nine seven eight nine"]
    n = 3
    known = set(itertools.chain(*(runs(text, n) for text in train)))
    own = [[g for g in runs(text, n) if len(g) == n] for text in held_out]
    hits = [sum(gram in known for gram in grams) for grams in own]
    assert data.contamination(train, held_out, n) == {
        "texts": 3,
        "texts_with_a_known_run": sum(map(bool, hits)),
        "known_runs": sum(hits) / sum(map(len, own)),
    }
    assert sum(hits) == 3
    assert data.contamination(train, ["x"], n)["known_runs"] == 0.0


PERSONAL = {
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
HARMLESS = [
    "4111 1111 1111 1112",  # no right check digit
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


@pytest.mark.parametrize("text", PERSONAL)
def test_what_tells_who_somebody_is_is_replaced(text):
    scrubbed, name = PERSONAL[text]
    assert data.scrub(text) == (scrubbed, {name: 1})


@pytest.mark.parametrize("text", HARMLESS)
def test_other_numbers_stay(text):
    assert data.scrub(text) == (text, {})


def test_counts_are_added_up():
    texts, counts = data.scrub_texts(["a@b.org c@d.org", "plain", "e@f.org 10.0.0.1"])
    assert texts == ["<EMAIL> <EMAIL>", "plain", "<EMAIL> <IP>"]
    assert counts == {"e-mail addresses": 3, "IP addresses": 1}


@pytest.mark.parametrize(
    "arguments, words", [({"threshold": 0.0}, "threshold"), ({"words": 0}, "words")]
)
def test_arguments_out_of_range_are_named(arguments, words):
    with pytest.raises(InputError, match=words):
        data.without_near_duplicates(["a"], **arguments)
    with pytest.raises(InputError, match="words"):
        data.contamination(["a"], ["b"], words=0)
