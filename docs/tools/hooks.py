"""MkDocs hooks: lay out the library's sources as one tree, convert formulas to MathML, and check
that every public name has a docstring."""

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

    This runs before the plugins look for the folder, which they do only once.
    """
    shutil.rmtree(LIBRARY, ignore_errors=True)
    for source, folder in (("keras_llm", "."), ("export", "export"), ("recipes", "recipes")):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / source, LIBRARY / folder, ignore=ignored, dirs_exist_ok=True)


def on_pre_build(config):
    """Warn about public names without a docstring."""
    for name in docstrings.undocumented(LIBRARY.parent):
        log.warning("%s has no docstring", name)


_FORMULA = re.compile(
    r"([(\u201c\uff08]?)"
    r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\2>'
    r"([,.;:!?)\u201d\u3001\u3002\uff01\uff09\uff0c\uff1a\uff1b\uff1f]*)",
    re.DOTALL,
)
_LETTERS = re.compile(r'(?:<mi mathvariant="normal">\w</mi>){2,}')
_FUNCTION = re.compile(
    r"(<msub><mi>log</mi>.*?</msub>|<mi>(?:log|exp|sin|cos|max)</mi>)(?!<mo[^>]*>&#x00028;)"
)
_SIGN = re.compile(r"(<mo[^>]*>(?:=|&#x0003D;|&#x00028;|&#x0002C;)</mo>)<mo>&#x02212;</mo>")
_ABSOLUTE = re.compile(r"<mo>&#x0007C;</mo>(.*?)<mo>&#x0007C;</mo>")
_CODE = re.compile(r"(?<!<pre><span></span>)(?<!<pre>)<code>([^<]+)</code>")
_FLAG = re.compile(r"^--[^_<]+")
_NUMBER = re.compile(r"\d[\d.]*e[-+]\d+|\d{4}-\d\d-\d\d")
_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
_HEADER = re.compile(r"<th>(.*?)</th>", re.DOTALL)


def on_page_content(html, page, config, files):
    """Convert formulas to MathML, which browsers render natively; restore the paths of sources."""
    html = re.sub("build/docs_library/keras_llm/(export|recipes)/", r"\1/", html)
    html = html.replace("build/docs_library/", "")
    html = _CODE.sub(_breakable, html)
    html = _CELL.sub(_cell, html)
    html = _HEADER.sub(_header, html)
    return _FORMULA.sub(_mathml, html)


def _mathml(match):
    before, tag, latex, after = match.groups()
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        latex = latex.replace(entity, character)
    display = "block" if tag == "div" else "inline"
    math = latex2mathml.converter.convert(latex, display=display)
    # Letters of a name become one identifier; a function is set off from its argument.
    math = _LETTERS.sub(lambda name: f"<mi>{re.sub('<[^>]*>', '', name.group())}</mi>", math)
    math = math.replace("<mo>max</mo>", "<mi>max</mi>")
    math = _FUNCTION.sub(r'\1<mspace width="0.167em"/>', math)
    # Signs and bars are not operators with space around them.
    math = _SIGN.sub(r'\1<mo form="prefix">&#x02212;</mo>', math)
    bar = '<mo form="{}" fence="true" stretchy="false">|</mo>'
    math = _ABSOLUTE.sub(rf"{bar.format('prefix')}\1{bar.format('postfix')}", math)
    # Punctuation stays inside, so that it does not wrap to another line.
    return f'<{tag} class="formula">{before}{math}{after}</{tag}>'


def _breakable(match):
    """Let inline code break at spaces and inside long words, but not after hyphens."""

    def word(match):
        if len(match.group()) > 24:
            word = re.sub(r"(?<=[\w)\]])([(.=/_,]+)(?=\w)", r"\1<wbr>", match.group())
            return _FLAG.sub(_whole, word)
        return _whole(match) if "-" in match.group() else match.group()

    return f"<code>{re.sub(r'[^ ]+', word, match.group(1))}</code>"


def _cell(match):
    """Keep numbers in a table cell unbroken, and mark long cells, which need more width."""
    long = len(re.sub("<[^>]*>", "", match.group(1))) > 60
    return f"<td{' class=long' * long}>{_NUMBER.sub(_whole, match.group(1))}</td>"


def _header(match):
    """Mark long headers, which wrap; others determine the width of their column."""
    long = len(re.sub("<[^>]*>", "", match.group(1))) > 24
    return f"<th{' class=long' * long}>{match.group(1)}</th>"


def _whole(match):
    return f'<span class="whole">{match.group()}</span>'


_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?(https?:)?//[^>]*>"""
    r"""|<link[^>]+rel=["']?(?:stylesheet|preconnect|preload|icon)[^>]+href=["']?https?://[^>]*>"""
)
_CHINESE = {
    "Next": "下一页",
    "Previous": "上一页",
    "Table of contents": "目录",
    "Back to top": "回到顶部",
}
_LABEL = re.compile(rf"(>\s*)({'|'.join(_CHINESE)})(\s*<)")


def on_post_page(output, page, config):
    """Warn about external resources, and set the language and the labels of Chinese pages."""
    for match in _FETCHED.finditer(output):
        log.warning("%s loads an external resource: %s", page.file.src_uri, match.group())
    if page.file.src_uri.startswith("zh/"):
        output = output.replace('<html lang="en"', '<html lang="zh-Hans"', 1)
        output = _LABEL.sub(lambda m: m[1] + _CHINESE[m[2]] + m[3], output)
    return output
