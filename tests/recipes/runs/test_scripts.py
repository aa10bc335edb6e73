"""Test the recipes as scripts: short, over public API, copied, and from other packages."""

import ast
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import keras_llm
from keras_llm import cli, recipes
from keras_llm.commands import entry_points
from keras_llm.recipes.corpora import registry

FOLDER = pathlib.Path(recipes.__path__[0])
SCRIPTS = [*entry_points.recipes(), "demo"]
PUBLIC = {"data", "export", "models", "tasks", "tokenizers", "training"}
SUPPORT = {"cli", "errors", "silence"}  # for scripts and their messages

OTHER_RECIPE = '''
import dataclasses

BASELINE, NEXT = "chance", "predict {out} TEXT"


@dataclasses.dataclass
class Options:
    """Train a model of another package."""

    out: str
    """Output folder."""
    json: bool = False


def run(options):
    return {"held_out": {"accuracy": 0.75}, "chance": {"accuracy": 0.5}}


def evaluate(folder, data=None):
    return {"accuracy": 0.75}


def texts(task):
    return ["The value of a name. " * 40], ["Another word and a name. " * 40]


class Corpus:
    description = "a corpus of another package"
    kind, packages = "texts", ()

    @staticmethod
    def read():
        return ["one", "two"]


CORPORA = {"other-texts": Corpus}
'''


def script(name, folder, *arguments):
    """Run a copy of a recipe's script in another folder; return the finished process."""
    copy = shutil.copy(FOLDER / f"{name}.py", folder / "my_copy.py")
    command = [sys.executable, copy, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("name", SCRIPTS)
def test_copy_of_a_script_prints_its_options(name, tmp_path):
    done = script(name, tmp_path, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "usage: my_copy" in done.stdout and "--smoke" in done.stdout


def test_copy_of_a_script_trains_and_evaluates(text_folder, tmp_path, capfd):
    arguments = ["--smoke", "--out", "run", "--data", text_folder, "--max-megabytes", 0.05]
    done = script("text_generation", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["held_out"]["perplexity"] > 1
    assert cli.main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == pytest.approx(metrics["held_out"], rel=1e-4)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_use_public_api(name):
    source = (FOLDER / f"{name}.py").read_text("utf-8")
    assert len(source.splitlines()) <= 150
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "keras_llm":
            assert {alias.name for alias in node.names} <= PUBLIC | SUPPORT
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("keras_llm."):
            assert node.module.split(".")[1] in PUBLIC | SUPPORT | {"recipes"}
            assert node.module.count(".") == 1 or node.module.startswith("keras_llm.recipes.")


def test_every_script_is_registered():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS, "__init__"}


def called(capfd, *arguments):
    """Run a command in this process; return the exit code and stdout."""
    return cli.main(list(map(str, arguments))), capfd.readouterr().out


def test_recipes_and_corpora_of_other_packages(task, tmp_path, capfd, monkeypatch):
    (tmp_path / "other_recipe.py").write_text(OTHER_RECIPE)
    (tmp_path / "other_package-1.0.dist-info").mkdir()
    info = tmp_path / "other_package-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[keras_llm.recipes]\nother = other_recipe\n"
        "[keras_llm.corpora]\nother = other_recipe:CORPORA\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, printed = called(capfd, "recipes", "--json")
    assert code == 0
    assert json.loads(printed)["recipes"]["other"] == "Train a model of another package."
    assert json.loads(printed)["corpora"]["other-texts"] == "a corpus of another package"
    assert registry.load("other-texts") == ["one", "two"]
    code, printed = called(capfd, "train", "other", "--out", "x")
    assert code == 0 and "0.75 " in printed and "keras-llm predict x TEXT" in printed
    keras_llm.TextGeneration(task.model, task.tokenizer, {"recipe": "other"}).save(tmp_path / "m")
    code, printed = called(capfd, "evaluate", tmp_path / "m", "--json")
    assert code == 0 and json.loads(printed) == {"accuracy": 0.75}
    code, printed = called(capfd, "audit", tmp_path / "m", "--json")
    sides = [row["side"] for row in json.loads(printed)["memorization"]]
    assert code == 0 and sides == ["trained on", "held out"]
