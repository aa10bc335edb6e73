"""What the site needs beyond MkDocs: one tree of the library's sources, formulas as MathML, and a
docstring for every public name."""

import logging
import pathlib
import re
import shutil
import sys

import latex2mathml.converter

ROOT = pathlib.Path(__file__).parent.parent.parent
LIBRARY = ROOT / "build/docs_library/keras_llm"

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import docstrings  # noqa: E402

log = logging.getLogger("mkdocs.hooks")  # a warning fails the strict build


def on_startup(command, dirty):
    """Lay out the sources as users import them: `export/` is `keras_llm.export`.

    Before the plugins look for the folder, which they do once.
    """
    shutil.rmtree(LIBRARY, ignore_errors=True)
    for source, folder in (("keras_llm", "."), ("export", "export"), ("recipes", "recipes")):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / source, LIBRARY / folder, ignore=ignored, dirs_exist_ok=True)


def on_pre_build(config):
    for name in docstrings.undocumented(LIBRARY.parent):
        log.warning("%s has no docstring", name)


_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def on_page_content(html, page, config, files):
    """Turn formulas into MathML, which browsers render by themselves; name sources as they are."""

    def mathml(match):
        tag, latex = match.groups()
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            latex = latex.replace(entity, character)
        display = "block" if tag == "div" else "inline"
        math = latex2mathml.converter.convert(latex, display=display)
        return f'<{tag} class="formula">{math}</{tag}>'

    html = re.sub("build/docs_library/keras_llm/(export|recipes)/", r"\1/", html)
    html = html.replace("build/docs_library/", "")
    return _FORMULA.sub(mathml, html)


_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?(https?:)?//[^>]*>"""
    r"""|<link[^>]+rel=["']?(?:stylesheet|preconnect|preload|icon)[^>]+href=["']?https?://[^>]*>"""
)


def on_post_page(output, page, config):
    for match in _FETCHED.finditer(output):
        log.warning("%s fetches from elsewhere: %s", page.file.src_uri, match.group())
    if page.file.src_uri.startswith("zh/"):
        output = output.replace('<html lang="en"', '<html lang="zh-Hans"', 1)
    return output
