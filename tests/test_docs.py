"""What the documents tell a reader to type is typed here."""

import pathlib
import re
import shlex

import pytest

import keras_llm
from keras_llm import cli

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_are_written(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in "".join(blocks(page, "console")).splitlines():
        program, *arguments = shlex.split(line)
        if program == "keras-llm":
            cli._parse(arguments)  # raises what a user would be told
        elif program == "make":
            assert set(arguments) <= targets, line
        else:
            assert program in ("pip", "tensorboard", "source", "python", "python3"), line


def test_relative_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
