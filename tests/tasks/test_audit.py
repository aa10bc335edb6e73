"""Test measures of fairness and memorization on models with known answers."""

import csv
import json
import math
import re

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import cli, models, tasks, tokenizers
from keras_llm.errors import InputError
from keras_llm.tasks import audit

PAIRS = [("he", "she"), ("man", "woman")]
TEXTS = ["He is a man .", "She wept .", "the film", "A woman and the man met .", "woman woman"]


@pytest.fixture(scope="module")
def tok():
    words = " ".join([*TEXTS, "my code is 0 1 2 3 4 5 6 7 8 9"])
    return tokenizers.WordPiece.train([words] * 9, 90)


@pytest.fixture(scope="module")
def classifier(tok):
    """Return a classifier with known outputs.

    `log p(bad) / p(good)` is 2 for each "she" or "woman" in a text, and 0 otherwise.
    """
    keras.utils.set_random_seed(0)
    config = models.preset("encoder-tiny", vocabulary_size=tok.vocabulary_size)
    model = models.text_classifier(config, 2, "mean", 0.0)
    task = tasks.TextClassification(model, tok, ["good", "bad"])

    def logits(token_ids, lengths):
        ids, lengths = np.asarray(token_ids), np.asarray(lengths)
        term_ids = [tok.encode(word)[0] for word in ("she", "woman")]
        count = np.isin(ids, term_ids).sum(1)
        return np.stack([0.0 * count, 2.0 * count], 1).astype("float32")

    task.outputs = logits
    return task


@pytest.fixture(scope="module")
def generator(tok):
    keras.utils.set_random_seed(5)
    config = models.preset("llama-tiny", vocabulary_size=tok.vocabulary_size, initializer_range=0.3)
    return tasks.TextGeneration(models.causal_lm(config), tok)


def test_swaps_change_whole_words_and_are_reversible():
    text = "He, the MAN; shepherd manly mankind. WOMAN! Man"
    swapped = audit.swapped(text, PAIRS, 1)
    assert swapped == "She, the WOMAN; shepherd manly mankind. WOMAN! Woman"
    assert audit.swapped(swapped, PAIRS, 1) == swapped
    swapped_back = audit.swapped(swapped, PAIRS, 0)
    assert swapped_back == "He, the MAN; shepherd manly mankind. MAN! Man"
    assert audit.swapped(text, [], 1) == text
    for pairs in audit.TERMS.values():
        for pair in pairs:
            sentence = "so " + pair[0] + " came"
            assert audit.swapped(audit.swapped(sentence, pairs, 1), pairs, 0) == sentence
    assert audit.checked_terms(audit.TERMS) is audit.TERMS


def test_term_swaps_measure_known_effects(classifier):
    (row,) = audit.term_swaps(classifier, TEXTS, {"gender": PAIRS, "none": [("pope", "nun")]})
    counts = [len(re.findall(r"\b(he|she|man|woman)\b", text.lower())) for text in TEXTS]
    counts = [n for n in counts if n]  # terms after swapping to the second side
    change = np.array([1 / (1 + math.exp(-2 * n)) - 0.5 for n in counts])
    assert row["terms"] == "gender" and row["texts"] == 4 == len(counts)
    assert row["mean_change"]["bad"] == pytest.approx(change.mean(), abs=1e-6)
    assert row["mean_change"]["good"] == pytest.approx(-change.mean(), abs=1e-6)
    assert row["largest_change"] == pytest.approx(change.max(), abs=1e-6)
    assert row["flipped"] == 1.0
    (row,) = audit.term_swaps(classifier, TEXTS, {"other": [("is", "wept")]})
    assert row["flipped"] == row["largest_change"] == 0.0 and row["texts"] == 2
    (row,) = audit.term_swaps(classifier, TEXTS, {"gender": PAIRS}, max_texts=1)
    assert row["texts"] == 1


def test_exposure_counts_more_likely_candidates(generator):
    canary = "my code is 4 2"
    candidates = [f"my code is {a} {b}" for a in range(10) for b in range(10)]
    scores = [generator.score(text) for text in candidates]
    order = [candidates[i] for i in np.argsort(scores)[::-1]]
    result = audit.canary_exposure(generator, canary)
    assert result["candidates"] == 100 and result["rank"] == 1 + order.index(canary)
    assert result["log_likelihood"] == pytest.approx(generator.score(canary), abs=1e-3)
    assert result["exposure"] == pytest.approx(math.log2(100 / result["rank"]))
    assert audit.canary_exposure(generator, order[0])["exposure"] == pytest.approx(math.log2(100))
    assert audit.canary_exposure(generator, order[-1])["exposure"] == pytest.approx(0)
    sampled = audit.canary_exposure(generator, order[0], candidates=20, seed=1)
    assert (sampled["candidates"], sampled["rank"]) == (21, 1)


def test_memorization_matches_greedy_decoding(generator, tok):
    prompts = ["He is a man . She", "the film my code is", "woman and the man met ."]
    generated = [generator(text, max_new_tokens=8, temperature=0.0) for text in prompts]
    texts = [f"{a} {b}" for a, b in zip(prompts, generated, strict=True)]
    ids = [tok.encode(text) for text in texts]
    prompt_ids = [tok.encode(text) for text in prompts]
    rows = [(row, len(k)) for row, k in zip(ids, prompt_ids, strict=True) if len(row) >= len(k) + 4]
    rows = [(row, n) for row, n in rows if tok.encode(tok.decode(row)) == row]
    assert rows
    for row, n in rows:
        memorized = audit.memorization(generator, [tok.decode(row)], n, 4)
        assert memorized == {
            "texts": 1,
            "extractable": 1.0,
            "mean_prefix": 4.0,
            "longest_prefix": 4,
        }
        other = next(i for i in tok.encode("the film is") if i != row[n + 2])
        changed = [*row[: n + 2], other, *row[n + 3 :]]
        if tok.encode(tok.decode(changed)) == changed:
            result = audit.memorization(generator, [tok.decode(changed)], n, 4)
            assert (result["extractable"], result["longest_prefix"]) == (0.0, 2)
    with pytest.raises(InputError, match="none has 100 tokens"):
        audit.memorization(generator, texts, 50, 50)
    with pytest.raises(InputError, match="together at most 127"):
        audit.memorization(generator, texts, 100, 50)


def test_continuations_are_classified_without_prompt(generator, classifier):
    (row,) = audit.continuation_swaps(
        generator, classifier, {"gender": PAIRS}, count=3, max_new_tokens=6, seed=4
    )
    means = []
    for side in (0, 1):
        texts = [
            generator(f"The {pair[side]} was", max_new_tokens=6, seed=4, num_return_sequences=3)
            for pair in PAIRS
        ]
        texts = [text for row in texts for text in row if text.strip()]
        rows = classifier(texts, return_details=True)
        means.append(np.mean([result.probabilities["bad"] for result in rows]))
    assert row["mean_change"]["bad"] == pytest.approx(means[1] - means[0], abs=1e-5)
    assert row["texts"] == len(texts)
    with pytest.raises(InputError, match="`prompt` must have"):
        audit.continuation_swaps(generator, classifier, {"gender": PAIRS}, "The man")


@pytest.mark.parametrize("pairs", [[("He", "she")], [("he", "she"), ("he", "it")], [("", "a")]])
def test_invalid_terms_raise_error(classifier, pairs):
    with pytest.raises(InputError, match="`terms` of 'gender'"):
        audit.term_swaps(classifier, TEXTS, {"gender": pairs})


def test_canary_without_digits_raises_error(generator):
    with pytest.raises(InputError, match="`canary` must have digits"):
        audit.canary_exposure(generator, "my code is secret")


def test_command_line_writes_model_card(generator, tok, tmp_path, capfd):
    config = models.preset("encoder-tiny", vocabulary_size=tok.vocabulary_size)
    classifier = tasks.TextClassification(models.text_classifier(config, 2), tok, ["good", "bad"])
    classifier.save(tmp_path / "sorter")
    generator.save(tmp_path / "writer")
    (tmp_path / "sorter" / "README.md").write_text("# sorter\n\nkept\n")
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text * 3}) + "\n" for text in TEXTS)
    )
    with open(tmp_path / "terms.csv", "w", newline="") as file:
        csv.writer(file).writerows([["name", "first", "second"], ["kin", "man", "woman"]])
    data = ["--data", str(tmp_path / "texts.jsonl")]
    terms = ["--terms", str(tmp_path / "terms.csv")]
    for _ in range(2):
        assert cli.main(["audit", str(tmp_path / "sorter"), *data, *terms]) == 0
    output = capfd.readouterr().out
    card = (tmp_path / "sorter" / "README.md").read_text()
    assert card.count("## Audit") == 1 and "\nkept\n" in card and "| kin | 3 |" in card
    assert "kin" in output
    metrics = json.loads((tmp_path / "sorter" / "metrics.json").read_text())["audit"]
    expected = audit.term_swaps(
        keras_llm.load(tmp_path / "sorter"), [text * 3 for text in TEXTS], {"kin": PAIRS[1:]}
    )
    assert metrics["term_swaps"][0]["mean_change"] == pytest.approx(expected[0]["mean_change"])
    more = ["--canary", "my code is 42", "--classifier", str(tmp_path / "sorter"), "--json"]
    sizes = ["--prompt-tokens", "3", "--new-tokens", "3"]
    assert cli.main(["audit", str(tmp_path / "writer"), *data, *terms, *more, *sizes]) == 0
    result = json.loads(capfd.readouterr().out)
    assert set(result) == {"continuation_swaps", "canaries", "memorization"}
    assert result["canaries"][0]["candidates"] == 100
    card = (tmp_path / "writer" / "README.md").read_text()
    assert "| my code is 42 |" in card and "exposure" in card
    assert cli.main(["audit", str(tmp_path / "sorter")]) == 2
    assert "does not record its training data" in capfd.readouterr().err
    assert cli.main(["audit", str(tmp_path / "sorter"), *data, "--canary", "1"]) == 2
    assert "--canary is only for text generators" in capfd.readouterr().err
