"""Test the masked language model recipe, and a classifier that starts from its encoder."""

import json

import numpy as np
import pytest

import keras_llm
from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.recipes import masked_lm, text_classification
from keras_llm.recipes.common import text_targets

pytestmark = pytest.mark.usefixtures("one_layer")


@pytest.fixture(scope="module")
def run(text_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("masked") / "run"
    options = masked_lm.Options(
        out=str(out), data=str(text_folder), smoke=True, held_out=0.2, max_megabytes=0.1
    )
    return out, masked_lm.run(options)


def test_model_beats_most_frequent_token(run):
    folder, metrics = run
    held_out, baseline = metrics["held_out"], metrics["most_frequent"]
    assert held_out["tokens"] == baseline["tokens"] > 500
    assert held_out["accuracy"] > 2 * baseline["accuracy"] > 0
    assert held_out["perplexity"] < 0.9 * baseline["perplexity"]
    card = (folder / "README.md").read_text()
    assert f"{held_out['accuracy']:.4f}" in card and f"{baseline['accuracy']:.4f}" in card
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_evaluate_reproduces_held_out_metrics(run, tmp_path, loaded_once):
    folder, metrics = run
    assert masked_lm.evaluate(folder) == pytest.approx(metrics["held_out"], rel=1e-4)
    held_out_tokens = metrics["held_out"]["tokens"]
    (tmp_path / "other.txt").write_text("The value of an expression is an object. " * 90)
    assert masked_lm.evaluate(folder, tmp_path / "other.txt")["tokens"] < held_out_tokens


def test_prompt_that_does_not_fit_raises_before_training(text_folder, tmp_path):
    options = masked_lm.Options(
        out=str(tmp_path / "run"),
        data=str(text_folder),
        smoke=True,
        max_megabytes=0.05,
        prompt="The [MASK] " * 500,
    )
    with pytest.raises(InputError, match="tokens"):
        masked_lm.run(options)
    assert list(tmp_path.iterdir()) == []


def test_mask_is_filled(run, loaded_once):
    task = keras_llm.load(run[0])
    found = task("The value of the [MASK] is an object.", return_details=True)
    assert "[MASK]" not in found.text and len(found.tokens[0]) == 5


def test_classifier_starts_from_the_encoder(run, tmp_path):
    rows = [f"the {word} statement {i}\t{word}" for i in range(40) for word in ("if", "for")]
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "\n".join(rows))
    settings = {"out": str(tmp_path / "run"), "data": str(tmp_path / "rows.tsv"), "smoke": True}
    options = text_classification.Options(**settings, start=str(run[0]))
    task = keras_llm.load(run[0])
    kind = text_targets.Classes(["bad", "good"])
    classifier = text_classification.untrained(options, [], kind)
    assert classifier.tokenizer.vocabulary == task.tokenizer.vocabulary
    weights = (one.model.get_layer("backbone").get_weights() for one in (classifier, task))
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert text_classification.run(options)["held_out"]["accuracy"] > 0.9


def test_next_sentence_head(text_folder, tmp_path, loaded_once):
    options = masked_lm.Options(
        out=str(tmp_path / "run"), data=str(text_folder), smoke=True, next_sentence=True,
        held_out=0.2, max_megabytes=0.05,
    )  # fmt: skip
    options.epochs = 1
    metrics = masked_lm.run(options)
    found = metrics["held_out"]
    assert metrics["most_frequent"]["next_sentence_accuracy"] == 0.5
    assert 0.2 < found["next_sentence_accuracy"] < 1
    assert metrics["training"]["pairs_per_second"] > 0
    assert masked_lm.evaluate(tmp_path / "run") == pytest.approx(found, rel=1e-4)
    judge, task = (keras_llm.load(tmp_path / "run" / name) for name in ("next_sentence", "."))
    texts = "The value is an object.", "It is evaluated first."
    one, other = judge(*texts), judge(*texts[::-1])
    assert judge(list(texts), list(texts[::-1])) == pytest.approx([one, other], rel=1e-4)
    assert 0 < one < 1 and one != other
    weights = (m.model.get_layer("backbone").get_weights() for m in (judge, task))
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert f"{found['next_sentence_accuracy']:.4f}" in (tmp_path / "run/README.md").read_text()
    with pytest.raises(InputError, match=r"`first` and `second` must .*got 1 and 2"):
        judge(["a"], ["b", "c"])


def test_start_without_an_encoder_raises(run, tmp_path):
    tok = keras_llm.load(run[0]).tokenizer
    config = models.preset("llama-tiny", vocabulary_size=tok.vocabulary_size)
    keras_llm.TextGeneration(models.causal_lm(config), tok).save(tmp_path / "other")
    (tmp_path / "rows.tsv").write_text(
        "text\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(40))
    )
    options = text_classification.Options(
        out=str(tmp_path / "run"), data=str(tmp_path / "rows.tsv"), start=str(tmp_path / "other")
    )
    with pytest.raises(InputError, match=r"--start: .* is a TextGeneration"):
        text_classification.run(options)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mask_rate": 0.0}, "mask-rate"),
        ({"prompt": "no gap"}, "prompt"),
        ({"sequence_length": 2}, "sequence-length"),
        ({"sequence_length": 4, "next_sentence": True}, "sequence-length"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        masked_lm.Options(out="runs/none", **changes)


def test_window_longer_than_the_preset_raises(text_folder, tmp_path):
    options = masked_lm.Options(
        out=str(tmp_path / "run"), data=str(text_folder), sequence_length=4096, max_megabytes=0.1
    )
    with pytest.raises(InputError, match="--sequence-length must be at most the preset's 512"):
        masked_lm.run(options)
