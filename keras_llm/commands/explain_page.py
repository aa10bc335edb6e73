"""Render the HTML page of `keras-llm explain`, a self-contained file."""

import base64
import html
import struct
import zlib

import numpy as np

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem;
  color: #1c2330; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: #566074; max-width: 46rem; }
.text { background: #f4f6fa; padding: .7rem 1rem; border-radius: .4rem; white-space: pre-wrap; }
.tokens { line-height: 2.2; } .tokens span { padding: .2rem .3rem; border-radius: .25rem; }
table { border-collapse: collapse; font-size: .85rem; } .scroll { overflow-x: auto; }
th, td { padding: .2rem .55rem; text-align: left; border-bottom: 1px solid #e3e7ee;
  white-space: nowrap; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: .5rem;
  margin-bottom: .5rem; }
.heads button { border: 1px solid #cdd4e0; background: #fff; padding: 2px; cursor: pointer; }
.heads button[aria-pressed=true] { outline: 2px solid #1f5fbf; }
.heads img, #big img { width: 100%; display: block; image-rendering: pixelated; }
.heads small { color: #566074; }
#big { display: grid; grid-template-columns: auto 1fr; gap: .3rem; max-width: 46rem; }
#big ol { list-style: none; margin: 0; padding: 0; font: 11px/1 monospace; color: #3b4558; }
#rows { display: flex; flex-direction: column; text-align: right; }
#rows li, #columns li { flex: 1; min-width: 0; display: flex; align-items: center; }
#rows li { justify-content: flex-end; }
#columns { display: flex; grid-column: 2; align-items: flex-start; }
#columns li { writing-mode: vertical-rl; }
"""
_SCRIPT = """
const buttons = document.querySelectorAll('.heads button');
const big = document.querySelector('#big img'), name = document.querySelector('#which');
for (const button of buttons) button.addEventListener('click', () => {
  for (const other of buttons) other.setAttribute('aria-pressed', other === button);
  big.src = button.querySelector('img').src; name.textContent = button.title;
});
if (buttons.length) buttons[0].click();
"""


def render(explanation, title):
    """Render an `Explanation` as an HTML page.

    Args:
        explanation: a `tasks.Explanation`.
        title: str.

    Returns:
        The HTML, a str. It loads no external resources.
    """
    parts = [f"<h1>{_text(title)}: {_text(explanation.task)}</h1>", _block(explanation.text)]
    if explanation.result:
        parts += ["<h2>Result</h2>", _block(explanation.result)]
    if explanation.attributions:
        parts += _attributions(explanation)
    if explanation.lens:
        parts += _lens(explanation)
    if explanation.attention:
        parts += _attention(explanation)
    if explanation.neighbors:
        parts += _neighbors(explanation.neighbors)
    script = f"<script>{_SCRIPT}</script>" if explanation.attention else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + f"\n{script}</body></html>\n"
    )


def _attributions(explanation):
    row = explanation.attributions
    largest = np.abs(row["tokens"]).max() or 1.0
    spans = [
        f'<span style="background: rgba({color}, {abs(value) / largest:.2f})" '
        f'title="{value:+.4f}">{_text(token)}</span>'
        for token, value in zip(explanation.tokens, row["tokens"], strict=True)
        for color in ["46, 160, 90" if value > 0 else "214, 80, 70"]
    ]
    return [
        f"<h2>Attributions for “{_text(row['label'])}”</h2>",
        '<p class="note">Integrated gradients: how much each token adds to the log-probability of '
        "the label (green: positive, red: negative). The baseline is the same text with all tokens "
        f"masked: log p is {row['baseline']:.3f} for the baseline and {row['output']:.3f} for the "
        f"text; the sum over the tokens is {row['tokens'].sum():+.3f}.</p>",
        f'<p class="tokens">{" ".join(spans)}</p>',
    ]


def _lens(explanation):
    head = "".join(f"<th>{_text(token)}</th>" for token in explanation.tokens)
    rows = []
    for layer, (tokens, probabilities) in enumerate(
        zip(explanation.lens["tokens"], explanation.lens["probabilities"], strict=True)
    ):
        cells = "".join(
            f'<td title="{p:.3f}" style="background: rgba(31, 95, 191, {0.75 * p:.2f})">'
            f"{_text(token)}</td>"
            for token, p in zip(tokens, probabilities, strict=True)
        )
        rows.append(f"<tr><th>{layer or 'embeddings'}</th>{cells}</tr>")
    return [
        "<h2>Logit lens</h2>",
        '<p class="note">The next token that the model would predict after each layer; darker '
        "cells have a higher probability. The last row is the model's prediction.</p>",
        f'<div class="scroll"><table><tr><th>after layer</th>{head}</tr>{"".join(rows)}</table>'
        "</div>",
    ]


def _attention(explanation):
    figures = []
    for layer, maps in enumerate(explanation.attention):
        buttons = "".join(
            f'<button type="button" title="layer {layer + 1}, head {head + 1}; '
            f'maximum {p.max():.2f}">'
            f'<img alt="" src="{_picture(p)}"><small>{layer + 1}.{head + 1}</small></button>'
            for head, p in enumerate(maps)
        )
        figures.append(f'<div class="heads">{buttons}</div>')
    labels = "".join(f"<li>{_text(token)}</li>" for token in explanation.tokens)
    rows = "".join(
        f"<tr><th>{row['layer'] + 1}.{row['head'] + 1}</th>"
        + "".join(f'<td class="n">{row[name]:.2f}</td>' for name in _COLUMNS)
        + "</tr>"
        for row in explanation.heads
    )
    head = "".join(f"<th>{title}</th>" for title in _COLUMNS.values())
    return [
        "<h2>Attention</h2>",
        '<p class="note">One image per layer and head: rows are queries, columns are keys, darker '
        "means more attention. Click an image to enlarge it.</p>",
        *figures,
        '<p><b id="which"></b></p>',
        f'<div id="big"><ol id="rows">{labels}</ol><img alt="attention of one head">'
        f'<ol id="columns">{labels}</ol></div>',
        "<h2>Heads</h2>",
        f'<div class="scroll"><table><tr><th>layer.head</th>{head}</tr>{rows}</table></div>',
    ]


_COLUMNS = {
    "entropy": "entropy, nats",
    "distance": "mean distance, tokens",
    "to_first": "to the first token",
    "to_self": "to itself",
    "to_previous": "to the previous token",
}


def _neighbors(neighbors):
    rows = "".join(
        f"<tr><th>{_text(token)}</th>"
        + "".join(f"<td>{_text(other)} {cosine:.2f}</td>" for other, cosine in others)
        + "</tr>"
        for token, others in neighbors.items()
    )
    return [
        "<h2>Nearest embeddings</h2>",
        '<p class="note">The tokens whose embeddings have the highest cosine similarity.</p>',
        f'<div class="scroll"><table>{rows}</table></div>',
    ]


def _block(text):
    return f'<div class="text">{html.escape(text)}</div>'


def _text(text):
    return html.escape(str(text)).replace("\n", "⏎")


def _picture(p):
    """Return attention probabilities (T, T) as the data URI of a grayscale PNG.

    White is 0 and black is the maximum. The scale is a square root, to make small values visible.
    """
    gray = (255 - 255 * np.sqrt(p / p.max())).round().astype("uint8")
    lines = b"".join(b"\0" + row.tobytes() for row in gray)
    header = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()
