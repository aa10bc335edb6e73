"""Test the text classification recipe on generated rows."""

import csv
import json
import random

import numpy as np
import pytest

import keras_llm
from keras_llm import cli, export, training
from keras_llm.errors import InputError
from keras_llm.recipes import text_classification
from keras_llm.recipes.common import flags, tables
from keras_llm.recipes.corpora import registry
from keras_llm.recipes.corpora.readers import Split

pytestmark = pytest.mark.usefixtures("one_layer")

WORDS = {"good": "good great fine lovely superb", "bad": "bad awful poor dull weak"}
FILLERS = [
    "the",
    "film",
    "was",
    "a",
    "story",
    "with",
    "music",
    "and",
    "people",
    "in",
    "it",
    "every",
    "day",
]


def write_rows(path, count=400, seed=0):
    """Write texts in which one word determines the label."""
    draw = random.Random(seed)
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["review", "stars"])
        for _ in range(count):
            label = draw.choice(list(WORDS))
            words = draw.choices(FILLERS, k=draw.randint(3, 25))
            words.insert(draw.randrange(len(words)), draw.choice(WORDS[label].split()))
            table.writerow([" ".join(words), label])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classification")
    options = text_classification.Options(
        out=str(folder / "run"),
        data=str(write_rows(folder / "rows.csv")),
        text_column="review",
        label_column="stars",
        smoke=True,
        export="saved_model,litert",
    )
    return folder / "run", text_classification.run(options)


def test_folder_contents(run):
    folder, metrics = run
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "confusion.png",
        "exports",
        "logs",
        "loss.png",
        "metrics.json",
        "model.weights.h5",
        "tokenizer",
    }
    assert {path.name for path in folder.parent.iterdir()} == {"run", "rows.csv"}
    for name in ("confusion.png", "loss.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_model_learns_and_is_evaluated(run):
    _, metrics = run
    held_out, baseline = metrics["held_out"], metrics["tfidf"]
    assert held_out["rows"] == baseline["rows"] == 40
    assert held_out["accuracy"] > 0.9 and held_out["macro_f1"] > 0.9
    counts = np.array(metrics["confusion"])
    assert counts.sum() == 40 and np.trace(counts) / 40 == pytest.approx(held_out["accuracy"])
    assert metrics["training"]["rows"] == 360 and metrics["training"]["dropped"] == {}
    losses = np.array(metrics["training"]["history"])
    assert losses[-1, 1] < 0.5 * losses[0, 1]


def test_exports_give_the_same_labels(run, loaded_once):
    import tensorflow as tf

    folder, metrics = run
    assert metrics["artifacts"]["saved_model"]["parity"]["labels_equal"] == 1.0
    assert metrics["artifacts"]["litert"]["bytes"] > 0
    task = keras_llm.load(folder)
    texts = ["the film was superb", "a dull story"]
    served = tf.saved_model.load(str(folder / "exports" / "serving" / "run" / "1"))
    found = served.signatures["serving_default"](text=tf.constant(texts))
    assert [label.decode() for label in found["label"].numpy()] == task(texts) == ["good", "bad"]
    runner = export.LiteRTModel(folder / "exports" / "run.tflite")
    assert [runner.classify(text)["label"] for text in texts] == ["good", "bad"]


def test_model_card_contains_the_metrics(run):
    folder, metrics = run
    card = (folder / "README.md").read_text()
    for measures in (metrics["held_out"], metrics["tfidf"]):
        assert f"{measures['accuracy']:.4f}" in card and f"{measures['macro_f1']:.4f}" in card
    assert f"{metrics['artifacts']['litert']['bytes']:,}" in card


def test_evaluate_reproduces_held_out_metrics(run, tmp_path, loaded_once):
    folder, metrics = run
    assert text_classification.evaluate(folder) == pytest.approx(metrics["held_out"], rel=1e-5)
    other = text_classification.evaluate(folder, write_rows(tmp_path / "other.csv", 60, seed=1))
    assert other["rows"] == 60 and other["accuracy"] > 0.9
    (tmp_path / "wrong.csv").write_text("review,stars\nfine,so-so\n")
    with pytest.raises(InputError, match="no label 'so-so'"):
        text_classification.evaluate(folder, tmp_path / "wrong.csv")


def test_predict_command(run, capfd, loaded_once):
    folder, _ = run
    assert cli.main(["predict", str(folder), "a superb film"]) == 0
    assert capfd.readouterr().out == "good\n"
    assert cli.main(["predict", str(folder), "a superb film", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["label"] == "good" and set(found["probabilities"]) == {"good", "bad"}
    assert cli.main(["predict", str(folder), "a film", "--context", "x"]) == 2
    assert "--context is only for models that read a context" in capfd.readouterr().err


def test_regression(tmp_path, loaded_once):
    draw, path = random.Random(1), tmp_path / "rows.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for _ in range(400):
            words = draw.choices(FILLERS, k=draw.randint(3, 12))
            good, bad = (draw.randrange(3) for _ in range(2))
            words += ["good"] * good + ["bad"] * bad
            draw.shuffle(words)
            table.writerow([" ".join(words), (good - bad) / 2])
    out = tmp_path / "run"
    options = text_classification.Options(
        out=str(out), data=str(path), kind="number", smoke=True, export="saved_model"
    )
    metrics = text_classification.run(options)
    held_out, baseline = metrics["held_out"], metrics["tfidf"]
    assert held_out["rows"] == baseline["rows"] and held_out["r2"] > 0.5
    assert metrics["artifacts"]["saved_model"]["parity"]["max_error"] < 1e-4
    assert (out / "scatter.png").read_bytes().startswith(b"\x89PNG")
    task = keras_llm.load(out)
    assert isinstance(task, keras_llm.TextRegression)
    assert task("good good the film") > 0.3 > -0.3 > task("bad bad the film")
    assert text_classification.evaluate(out) == pytest.approx(held_out, rel=1e-4)
    path.write_text("text,label\na film,fine\n")
    with pytest.raises(InputError, match=r"rows\.csv: .* 'fine' of 'a film' is not a number"):
        text_classification.evaluate(out, path)


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "no record"),
        ("text,label\na,x\nb,x\nc,x\n", "all training rows have the label 'x'"),
        ("text,topic\na,x\n", "line 1: no column 'label'"),
        ("text,label\na,x\na,x\n", "2 distinct"),
    ],
)
def test_invalid_rows_raise(tmp_path, content, words):
    (tmp_path / "rows.csv").write_text(content)
    options = text_classification.Options(
        out=str(tmp_path / "out" / "run"), data=str(tmp_path / "rows.csv"), smoke=True
    )
    with pytest.raises(InputError, match=words):
        text_classification.run(options)
    assert not (tmp_path / "out").exists()


def test_corpus_split_is_kept(tmp_path, monkeypatch, capfd):
    train = [(f"text {i}", "ab"[i % 2]) for i in range(20)] + [("text 0", "a"), ("Held  out", "a")]
    split = Split(train, [("held out", "b"), ("text  19", "b")])
    monkeypatch.setitem(
        registry.CORPORA, "tiny", registry.Corpus("tiny", lambda: split, kind="labeled")
    )
    options = text_classification.Options(out=str(tmp_path / "run"), corpus="tiny")
    train, held_out, kind, dropped = text_classification.rows(options)
    assert len(train) == 19 and held_out == split.held_out and kind.labels == ["a", "b"]
    assert dropped == {"repeated": 1, "held out too": 2}
    told = capfd.readouterr().err
    assert "19 rows for training, 2 held out; dropped: 1 repeated, 2 held out too" in told


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"export": "onnx"}, "export"),
        ({"export": "litert_lm"}, "export"),
        ({"max_length": 2}, "max-length"),
        ({"dropout": 1.0}, "dropout"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        text_classification.Options(out="runs/none", **changes)


def test_resumed_run_gives_the_same_model(run, tmp_path, monkeypatch):
    """The evaluation in the middle of the training raises MemoryError once."""
    whole, metrics = run
    rows = str(whole.with_name("rows.csv"))

    def train(name, **more):
        options = text_classification.Options(
            out=str(tmp_path / name), data=rows, text_column="review", label_column="stars",
            smoke=True, checkpoint_steps=7, **more,
        )  # fmt: skip
        return text_classification.run(options)["training"]["history"]

    save = training.BestWeights.on_epoch_end

    def fail(callback, epoch, logs=None):
        if epoch == 5:
            raise MemoryError
        save(callback, epoch, logs)

    monkeypatch.setattr(training.BestWeights, "on_epoch_end", fail)
    with pytest.raises(MemoryError):
        train("stopped")
    monkeypatch.setattr(training.BestWeights, "on_epoch_end", save)
    with pytest.raises(InputError, match="unfinished run"):
        train("stopped")
    assert train("stopped", resume=True) == metrics["training"]["history"]
    one_go, stopped = (keras_llm.load(path).model for path in (whole, tmp_path / "stopped"))
    for one, other in zip(one_go.weights, stopped.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_validation_rows_are_a_random_sample():
    options = flags.Options(out="m", batch_size=2, seed=3)
    rows = list(range(1000))
    watched = tables.validation_sample(rows, options)
    assert len(set(watched)) == 64 and min(watched) < 100 and max(watched) > 900
    assert tables.validation_sample(rows, options) == watched
    assert sorted(tables.validation_sample(rows[:10], options)) == rows[:10]
