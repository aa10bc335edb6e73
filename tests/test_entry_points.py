"""Test how recipes and corpora of other packages are found, with broken and missing ones."""

import importlib.metadata
import json
import os
import subprocess
import sys
import types

import pytest

import keras_llm
from keras_llm import cli, models, tasks, tokenizers
from keras_llm.commands import console, entry_points
from keras_llm.errors import InputError
from keras_llm.recipes.corpora import registry

RECIPES, CORPORA = "keras_llm.recipes", "keras_llm.corpora"


@pytest.fixture
def register(monkeypatch):
    """Return a function that adds entry points (name, value, group), before the installed ones."""
    installed = importlib.metadata.entry_points

    def add(*rows, only=False):
        def found(group):
            new = [importlib.metadata.EntryPoint(*row) for row in rows if row[2] == group]
            return importlib.metadata.EntryPoints(new if only else [*new, *installed(group=group)])

        monkeypatch.setattr(importlib.metadata, "entry_points", found)

    return add


@pytest.fixture
def module(monkeypatch):
    """Return a module `mine` that can be imported, with all attributes of a recipe."""
    mine = types.ModuleType("mine")
    mine.Options = type("Options", (), {"__doc__": "\n    Train mine.\n\n    More."})
    mine.run = mine.evaluate = print
    mine.BASELINE, mine.NEXT = "unigram", ""
    monkeypatch.setitem(sys.modules, "mine", mine)
    return mine


def failed(capfd, *arguments):
    """Run a command that must fail with one line; return the line."""
    code = cli.main(list(arguments))
    told = capfd.readouterr().err
    assert code == 2 and len(told.splitlines()) == 1, told
    return told


def test_without_entry_points_one_line_tells_to_install(register, capfd):
    register(only=True)
    for arguments in (["train"], ["recipes"], ["recipes", "--json"], ["train", "x", "--out", "y"]):
        told = failed(capfd, *arguments)
        assert "no recipes are installed; run pip install --editable ." in told
    for function in (entry_points.corpora, registry.corpora, lambda: registry.load("austen")):
        with pytest.raises(InputError, match="no corpora are installed; run pip install"):
            function()


def test_broken_packages_do_not_affect_others(register, capfd, module):
    module.broken, module.table = {"a": module}, 3
    rows = [("absent", "nowhere.module", RECIPES), ("lacking", "json", RECIPES)]
    rows += [("mine", "mine", RECIPES), ("absent", "nowhere.module:table", CORPORA)]
    rows += [("number", "mine:table", CORPORA), ("lacking", "mine:broken", CORPORA)]
    register(*rows)
    assert cli.main(["recipes", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    recipes, corpora = listed["recipes"], listed["corpora"]
    missing = "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"
    assert recipes["absent"] == corpora["absent"] == missing
    assert recipes["lacking"].startswith("cannot be used: json lacks Options, run, evaluate")
    assert recipes["mine"] == "Train mine." and "causal" in recipes["text_generation"]
    assert corpora["number"] == "cannot be used: mine:table is not a dict"
    assert corpora["lacking"].endswith("lacks description, kind, packages, read")
    assert "film reviews" in corpora["movie-reviews"]
    assert cli.main(["train", "--help"]) == 0
    assert missing in capfd.readouterr().out
    assert f"recipe 'absent' {missing}" in failed(capfd, "train", "absent", "--out", "x")
    assert "lacks Options" in failed(capfd, "train", "lacking", "--out", "x")
    with pytest.raises(InputError, match=r"unknown corpus 'x'.*'absent' cannot be imported"):
        registry.load("x")


def test_packages_that_import_tensorflow_print_nothing(tmp_path):
    (tmp_path / "heavy.py").write_text(
        "import os, tensorflow\n"
        "os.write(2, b'a log line')\n"
        "class Options:\n    'Train heavy.'\n"
        "run = evaluate = print\nBASELINE = NEXT = ''\n"
    )
    info = tmp_path / "heavy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{RECIPES}]\nheavy = heavy\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-m", "keras_llm", "recipes"],
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Train heavy." in done.stdout
    assert done.stderr == ""


def test_recipe_without_docstring_is_listed(register, module):
    register(("mine", "mine", RECIPES))
    for text in ("", None):
        module.Options.__doc__ = text
        assert entry_points.descriptions()["mine"] == ""


def test_of_duplicate_names_the_own_one_is_used(register, module):
    register(("text_generation", "mine", RECIPES), ("x", "mine", RECIPES), ("x", "json", RECIPES))
    with pytest.warns(UserWarning) as warned:
        recipe = entry_points.recipe("text_generation")
    assert recipe.__name__ == "keras_llm.recipes.text_generation"
    messages = [str(one.message) for one in warned]
    own = "keras_llm.recipes.text_generation is used and mine ignored"
    assert any(own in message for message in messages)
    assert any("mine is used and json ignored" in message for message in messages)


def test_of_duplicate_corpora_the_own_one_is_used(register, module):
    module.table = {"austen": registry.Corpus("mine", print), "other": registry.Corpus("b", print)}
    register(("mine", "mine:table", CORPORA))
    with pytest.warns(UserWarning, match="'austen': that of mine:table is ignored"):
        objects, errors = entry_points.corpora()
    assert objects["austen"] is registry.CORPORA["austen"] and not errors
    assert objects["other"].description == "b"


RECIPE_WITH_A_TASK = """
import keras_llm

class Options:
    "Train mine."

run = evaluate = print
BASELINE, NEXT = "unigram", ""

class Sorter(keras_llm.TextClassification):
    "A task of this package."

class Writer(keras_llm.TextGeneration):
    "Another one."
    def stream(self, prompt, **settings):
        yield prompt.upper()
"""


def test_subclasses_of_tasks_are_used_like_their_base(register, tmp_path, monkeypatch, capfd):
    """The recipe that trained a model defines the class of its task."""
    (tmp_path / "recipe_with_a_task.py").write_text(RECIPE_WITH_A_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    register(("mine", "recipe_with_a_task", RECIPES))
    tok = tokenizers.WordPiece.train(["a good film", "a bad film"] * 9, 80)
    sizes = {"vocabulary_size": tok.vocabulary_size, "num_layers": 1}
    metadata = {"recipe": "mine", "chat_template": "{{ messages[0].content }}"}
    classifier = models.text_classifier(models.preset("bert-tiny", **sizes), 2)
    writer = models.causal_lm(models.preset("llama-tiny", **sizes))
    for name, task in {
        "Sorter": keras_llm.TextClassification(classifier, tok, ["bad", "good"], metadata),
        "Writer": keras_llm.TextGeneration(writer, tok, metadata),
    }.items():
        task.save(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task": name}))
    sorter, writer = str(tmp_path / "Sorter"), str(tmp_path / "Writer")
    assert cli.main(["predict", sorter, "a good film"]) == 0
    assert capfd.readouterr().out in ("good\n", "bad\n")
    assert cli.main(["generate", writer, "film", "--stream"]) == 0
    assert capfd.readouterr().out == "FILM\n"
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(EOFError))
    assert cli.main(["chat", writer]) == 0
    capfd.readouterr()
    for command in (
        ["chat", sorter],
        ["generate", sorter, "x"],
        ["audit", sorter, "--canary", "x"],
    ):
        assert "TextClassification" in (told := failed(capfd, *command)) or "--canary" in told
    assert "is a TextGeneration" in failed(capfd, "predict", writer, "x")


def test_commands_know_all_tasks():
    """They list the names, because the classes import TensorFlow."""
    public = {name for name in tasks.__all__ if isinstance(getattr(tasks, name), type)}
    assert {name for name in public if issubclass(getattr(tasks, name), tasks.Task)} - {
        "Task"
    } == console._TASKS
