"""Test the word vectors recipe with each objective on text with two kinds of words."""

import json
import random

import numpy as np
import pytest

import keras_llm
from keras_llm import checkpoints, cli, export
from keras_llm.errors import InputError
from keras_llm.recipes import word_vectors
from keras_llm.recipes.corpora import registry

KINDS = [["red", "green", "blue", "white"], ["one", "two", "three", "four"]]
FRAMES = [["paint", "colour", "bright"], ["count", "number", "sum"]]
BENCHMARKS = {
    "analogies": [("red", "one", "green", "two"), ("red", "one", "green", "missing")],
    "wordsim": [("red", "green", 9.0), ("one", "two", 8.0), ("red", "two", 1.0)],
    "simlex": [("blue", "white", 9.0), ("blue", "four", 1.0)],
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw, lines = random.Random(0), []
    for _ in range(600):
        kind = draw.randrange(2)
        words = [draw.choice(draw.choice((KINDS, FRAMES))[kind]) for _ in range(12)]
        lines.append(" ".join(words))
    path = tmp_path_factory.mktemp("words") / "text.txt"
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    corpus = registry.Corpus("tiny", lambda: BENCHMARKS, kind="benchmarks")
    monkeypatch.setitem(registry.CORPORA, "word-similarity", corpus)


@pytest.mark.parametrize("objective", ["skip_gram", "cbow", "glove"])
def test_similar_words_become_neighbors(objective, text, tmp_path, capfd):
    out = tmp_path / "run"
    options = word_vectors.Options(
        out=str(out), data=str(text), objective=objective, smoke=True, word="red", threshold=0.5
    )
    options.threshold, options.learning_rate, options.batch_size = 0.5, 0.02, 16
    metrics = word_vectors.run(options)
    task = keras_llm.load(out)
    inside, across = [], []
    for kind, other in (KINDS, KINDS[::-1]):
        for word in kind:
            near = dict(task.nearest(word, 99))
            inside += [near[w] for w in kind if w != word]
            across += [near[w] for w in other]
    assert np.mean(inside) > np.mean(across) + 0.3
    held_out = metrics["held_out"]
    assert held_out["analogies"] == 1 and held_out["wordsim_pairs"] == 3
    assert held_out["simlex_spearman"] == pytest.approx(1.0)
    assert set(metrics["random"]) == set(held_out)
    assert word_vectors.evaluate(out) == held_out
    assert json.loads((out / "metrics.json").read_text()) == metrics

    table, words = checkpoints.read_glove(out / "vectors.txt")
    assert words == task.words
    np.testing.assert_allclose(table, task.table, rtol=1e-6)
    np.testing.assert_array_equal(task("red"), task.table[words.index("red")])
    shown = np.loadtxt(out / "logs" / "train" / "vectors.tsv")
    names = (out / "logs" / "train" / "words.tsv").read_text().split()
    np.testing.assert_allclose(shown, task.table, rtol=1e-4)
    assert names == words
    capfd.readouterr()
    assert cli.main(["predict", str(out), "red", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == [
        [w, pytest.approx(c)] for w, c in task.nearest("red")
    ]
    assert cli.main(["predict", str(out), "unheard"]) == 2
    assert "'unheard' has no vector" in capfd.readouterr().err
    with pytest.raises(InputError, match=r"TextGeneration, .*, got a WordVectors"):
        export.litert(task, out / "vectors.tflite")


def test_projector_files(text, tmp_path):
    from google.protobuf import text_format
    from tensorboard.plugins.projector import projector_config_pb2

    options = word_vectors.Options(out=str(tmp_path / "run"), data=str(text), smoke=True)
    options.benchmarks, options.epochs = False, 1
    metrics = word_vectors.run(options)
    assert metrics["held_out"] == {} and options.word
    logs = tmp_path / "run" / "logs" / "train"
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((logs / "projector_config.pbtxt").read_text(), config)
    assert (logs / config.embeddings[0].tensor_path).is_file()
    assert (logs / config.embeddings[0].metadata_path).is_file()


def test_invalid_word_or_options_raise_before_training(text, tmp_path):
    options = word_vectors.Options(out=str(tmp_path / "run"), data=str(text), word="film")
    with pytest.raises(InputError, match="'film' has no vector"):
        word_vectors.run(options)
    assert list(tmp_path.iterdir()) == []
    for changes, words in (
        ({"window": 0}, "window"),
        ({"threshold": 0.0}, "threshold"),
        ({"export": "litert"}, "export"),
        ({"optimizer": "muon"}, "optimizer"),
        ({"gensim": True, "objective": "glove"}, "gensim"),
    ):
        with pytest.raises(InputError, match=f"--{words}"):
            word_vectors.Options(out="runs/none", **changes)


def test_write_glove_checks_its_arguments(tmp_path):
    with pytest.raises(InputError, match="2 vectors and 1 words"):
        checkpoints.write_glove(tmp_path / "x.txt", np.ones((2, 3)), ["a"])
    checkpoints.write_glove(tmp_path / "x.txt", np.ones((1, 3)), ["a"])
    with pytest.raises(InputError, match="exists"):
        checkpoints.write_glove(tmp_path / "x.txt", np.ones((1, 3)), ["a"])
