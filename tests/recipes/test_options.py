"""Test the options that recipes share: ranges, --smoke, and what is refused before any work."""

import importlib.util

import pytest

from keras_llm import cli
from keras_llm.commands import entry_points
from keras_llm.errors import InputError
from keras_llm.recipes import chatbot, text_classification, text_generation
from keras_llm.recipes.common import model_card, runs, text_targets, vocabularies
from keras_llm.recipes.corpora import registry
from keras_llm.tokenizers import INFILLING_TOKENS, BytePair, SentencePiece, WordPiece

RECIPES = entry_points.recipes()
STARTED = ("finetune", "preference_tuning")  # their vocabulary is that of --start


def required(name):
    data = {"data": "rows.jsonl"} if name == "finetune" else {}
    return {"start": "runs/other", **data} if name in STARTED else {}


@pytest.mark.parametrize("name", RECIPES)
def test_smoke_keeps_options_that_are_given(name, monkeypatch):
    options_class = entry_points.recipe(name).Options
    tiny = options_class(out="x", smoke=True, **required(name))
    full = options_class(out="x", **required(name))
    assert tiny.smoke_changes and full.smoke_changes == {}
    for changed in tiny.smoke_changes:
        default, small = getattr(full, changed), getattr(tiny, changed)
        others = ["mine"] if isinstance(small, str) else [small + 1, small + 2]
        if isinstance(small, float):
            others = [small / 2, 0.3]
        given = next(value for value in others if value not in (default, small))
        kept = options_class(out="x", smoke=True, **{**required(name), changed: given})
        assert getattr(kept, changed) == given
    # The command line also knows that an option with its default value is given.
    seen = []
    monkeypatch.setattr(
        "keras_llm.commands.train.run", lambda recipe, options: seen.append(options)
    )
    changed = next(k for k, v in tiny.smoke_changes.items() if isinstance(v, int | float))
    default = tiny.smoke_changes[changed]
    start = [part for k, v in required(name).items() for part in (f"--{k}", v)]
    flag = f"--{changed.replace('_', '-')}"
    for arguments in ([flag, str(default)], [f"{flag}={default}"], []):
        assert cli.main(["train", name, "--out", "x", "--smoke", *start, *arguments]) == 0
    given, with_sign, without = (getattr(options, changed) for options in seen)
    assert given == with_sign == default != without


def test_options_of_another_file_change_nothing_else():
    options = text_classification.Options(out="x", smoke=True)
    options.epochs = text_classification.Options(out="x").epochs  # given on the command line
    other = options.reading("rows.csv")
    assert other.source == "`rows.csv`" and options.data is None
    assert vars(other) == vars(options) | {"data": "rows.csv"}


INVALID = [
    (["--seed", str(10**20)], "--seed must be in 0 .. 2**32 - 1"),
    (["--seed", "-1"], "--seed must be"),
    (["--vocabulary-size", "1"], "--vocabulary-size must be at least"),
    (["--learning-rate", "inf"], "--learning-rate must be > 0 and finite"),
    (["--learning-rate", "nan"], "--learning-rate must be > 0 and finite"),
    (["--weight-decay", "inf"], "--weight-decay must be >= 0 and finite"),
    (["--out", "{file}/run"], "cannot be written"),
    (["--out", "/proc/run"], "cannot be written"),
]


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        (name, *row)
        for name in RECIPES
        for row in INVALID
        if name not in STARTED or "--vocabulary-size" not in row[0]
    ],
)
def test_invalid_values_are_refused_before_any_work(
    name, arguments, words, tmp_path, monkeypatch, capfd
):
    def fail(*unused):
        raise AssertionError("work began")

    monkeypatch.setattr("keras_llm.commands.train.import_tensorflow", fail)
    monkeypatch.setattr(registry, "load", fail)
    (tmp_path / "file").touch()
    arguments = [part.format(file=tmp_path / "file") for part in arguments]
    start = [part for k, v in required(name).items() for part in (f"--{k}", v)]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "run")]
    assert cli.main(["train", name, *out, *start, *arguments]) == 2
    told = capfd.readouterr().err
    # Channels of gRPC tests in the same process may log that they were closed.
    told = [line for line in told.splitlines() if "chttp2_transport" not in line]
    assert len(told) == 1 and words in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_smallest_vocabularies_are_those_of_the_tokenizers():
    texts = ["some text to train on, once and once more"] * 9
    trainers = {
        "text_generation": lambda size: SentencePiece.train(texts, size),
        "translation": lambda size: SentencePiece.train(texts, size),
        "masked_lm": lambda size: WordPiece.train(texts, size),
        "text_classification": lambda size: WordPiece.train(texts, size),
        "chatbot": lambda size: BytePair.train(texts, size, special_tokens=("<a>", "<b>")),
        "code_generation": lambda size: BytePair.train(
            texts, size, special_tokens=INFILLING_TOKENS
        ),
    }
    for name, train in trainers.items():
        least = entry_points.recipe(name).Options(out="x").least_vocabulary
        with pytest.raises(InputError, match=f"at least {least}"):
            train(least - 1)
    for name in RECIPES:
        least = entry_points.recipe(name).Options.least_vocabulary
        assert least > 1 or name in (*STARTED, "question_answering")


def test_unfinished_run_is_refused_before_any_work(tmp_path):
    partial = tmp_path / "run.partial"
    partial.mkdir()
    (partial / "best.weights.h5").touch()
    options = text_classification.Options(out=str(tmp_path / "run"))
    with pytest.raises(InputError, match="unfinished run"):
        runs.prepare(options)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_short_text_gets_a_smaller_vocabulary_with_a_note(model_type, capfd):
    texts = ["once upon a time there was a fox"] * 5
    with pytest.raises(InputError, match="does not fit"):
        SentencePiece.train(texts, 8000, model_type)
    tokenizer = vocabularies.sentence_piece(texts, 8000, model_type)
    assert 261 <= tokenizer.vocabulary_size < 400
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    told = capfd.readouterr().err
    assert f"--vocabulary-size 8000; the vocabulary has {tokenizer.vocabulary_size}" in told
    vocabularies.sentence_piece(texts, tokenizer.vocabulary_size, model_type)
    assert capfd.readouterr().err == ""


def test_tfidf_of_texts_without_words():
    for texts, units in ((["a film", "a book"], "film"), (["+ -", "? !"], "+")):
        vectorizer = vocabularies.tfidf(texts).fit(texts)
        assert units in vectorizer.vocabulary_


def test_learning_rate_depends_on_what_is_trained():
    for changes, rate in (
        ({}, 3e-3),
        ({"start": "runs/a"}, 5e-5),
        ({"start": "runs/a", "lora_rank": 8}, 5e-4),
        ({"start": "runs/a", "learning_rate": 1e-3}, 1e-3),
    ):
        assert chatbot.Options(out="x", **changes).learning_rate == rate
    for changes, rate in (({}, 1e-3), ({"start": "minilm"}, 2e-4), ({"start": "scratch"}, 1e-3)):
        assert text_classification.Options(out="x", **changes).learning_rate == rate


def test_card_of_a_continued_run_does_not_name_a_preset():
    metrics = {
        "held_out": {"loss": 1.0},
        "training": {"parameters": 7, "steps": 1, "seconds": 1.0},
    }
    for changes, named in (({}, True), ({"start": "runs/other"}, False)):
        options = chatbot.Options(out="x", **changes)
        card = model_card.card(options, metrics, "A model.", {}, "rows", [], "chat {out}")
        assert ("`llama-3m`" in card) is named and "7 parameters" in card


def test_corpora_name_the_recipes_that_take_them(capfd):
    takers = entry_points.recipes_by_kind()
    assert takers["pairs"] == ["translation"]
    assert takers["labeled"] == ["preference_tuning", "text_classification"]
    kinds = {corpus.kind for corpus in registry.CORPORA.values()} - {"benchmarks"}
    assert kinds == set(takers)
    for name in RECIPES:
        recipe = entry_points.recipe(name)
        default = recipe.Options(out="x", **required(name)).corpus
        # Fine-tuning is for one's own data.
        assert name == "finetune" or registry.CORPORA[default].kind in recipe.CORPUS_KINDS
    assert cli.main(["recipes"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any("bible-es" in line and "translation" in line for line in lines)
    with pytest.raises(InputError, match="'austen' is of the kind 'texts', for code_generation"):
        registry.load("austen", "pairs")


def test_percentiles():
    assert runs.percentiles(range(1, 101)) == (
        "50 % have at most 51, 90 % have at most 91, 95 % have at most 96, 99 % have at most 100, "
        "100 % have at most 100"
    )


def test_missing_packages_of_exports_are_reported_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = text_generation.Options(out=str(tmp_path / "run"), export="litert_lm")
    with pytest.raises(InputError, match=r"--export litert_lm needs .*keras-llm\[device\]"):
        runs.prepare(options)


def test_numbers_whose_square_overflows_are_not_labels():
    assert text_targets.number("1e18") == 1e18 and text_targets.number("-2.5") == -2.5
    for text in ("1e19", "-1e300", "inf", "nan", "x"):
        assert text_targets.number(text) is None
