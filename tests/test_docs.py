"""Check the commands and links of the documentation; `make docs` runs its Python code."""

import json
import pathlib
import re
import shlex
import unicodedata

import pytest

import keras_llm
from keras_llm import cli

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
# Their code is that of the English pages, which a test below checks.
CHINESE = [page for page in PAGES if page.is_relative_to(DOCS / "zh") or "zh-CN" in page.name]


def code_blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_line_options_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in "".join(code_blocks(page, "console")).splitlines():
        program, *arguments = shlex.split(line)
        if program == "keras-llm":
            cli._parse(arguments)  # raises the error that a user would see
        elif program == "make":
            assert set(arguments) <= targets, line
        else:
            assert program in ("pip", "tensorboard", "source", "python", "python3"), line


def prose(page):
    """Return a page's text without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page):
    """Yield a page's heading anchors, by the rules of the site and of GitHub."""
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        text = unicodedata.normalize("NFC", re.sub(r"[`*]", "", heading)).strip().lower()
        yield re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in set(anchors(target)), f"{page.name}: {link}"


def test_navigation_lists_every_page_once():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    listed = re.findall(r": (\S+\.md)$", nav, re.M)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_listed_and_have_no_outputs(path):
    assert f"](notebooks/{path.name})" in (DOCS / "notebooks.md").read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    text = "\n".join("".join(cell["source"]) for cell in cells if cell not in code)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        assert (path.parent / link).exists(), link


def test_api_reference_has_every_public_name():
    pages = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)", pages, re.M)
    for package in sorted(keras_llm._SUBMODULES - {"recipes", "export"}):
        assert f"keras_llm.{package}" in shown
    for name, module in {**keras_llm.export._NAMES, "TensorBoard": "keras_llm.training"}.items():
        assert any(path.startswith(module) and path.endswith(f".{name}") for path in shown), name


def english_page(page):
    """Return the English page that a Chinese page translates."""
    if page.parent == ROOT:
        return ROOT / "README.md"
    return DOCS / page.relative_to(DOCS / "zh")


def page_structure(page):
    """Return what a translation keeps: heading levels, code, formulas, table rows, pictures."""
    text = prose(page)
    return {
        "headings": re.findall(r"^(#+) ", text, re.M),
        "code": re.findall(r"^```.*?^```", page.read_text("utf-8"), re.M | re.S),
        "formulas": re.findall(r"^\$\$.*\$\$$", text, re.M),
        "rows": len(re.findall(r"^\|", text, re.M)),
        "pictures": len(re.findall(r"^!\[", text, re.M)),
    }


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(ROOT)))
def test_chinese_page_has_structure_of_english_page(page):
    assert page_structure(page) == page_structure(english_page(page))


def test_teaching_pages_are_translated():
    teaching_pages = {"get_started.md", "faq.md", "serving.md", "on_device.md"} | {
        f"concepts/{page.name}" for page in (DOCS / "concepts").glob("*.md")
    }
    # The glossary contains both languages.
    translated = {str(page.relative_to(DOCS / "zh")) for page in (DOCS / "zh").rglob("*.md")}
    assert translated == teaching_pages - {"concepts/glossary.md"}
