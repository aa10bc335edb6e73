"""Run the tasks of models with a head in NumPy: encode texts and decode outputs.

Each function takes a `LiteRTModel` and texts, and returns the same results as the Keras task.
"""

from typing import TYPE_CHECKING

import numpy as np

from keras_llm.errors import InputError
from keras_llm.span_search import best_span, window_starts
from keras_llm.tokenizers.mask_filling import WHITE_SPACE, MaskFiller
from keras_llm.tokenizers.word_segmentation import word_spans
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.export.litert.runtime.model import LiteRTModel


def classify(runner: "LiteRTModel", text: str, truncate: bool) -> JSON:
    """Classify a text; return `label`, `probability`, `probabilities` and `truncated`."""
    row, is_cut = _framed(runner, "text", _encoded(runner, "text", text), truncate)
    probabilities = _call(runner, row)["probabilities"][0]
    labels, best = runner.manifest["labels"], int(probabilities.argmax())
    return {
        "label": labels[best],
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(labels, probabilities.tolist(), strict=True)),
        "truncated": is_cut,
    }


def tag(runner: "LiteRTModel", text: str, truncate: bool) -> JSON:
    """Label the words of a text.

    Returns:
        A dict of `words`, each a dict of `text`, `label`, `probability`, `start` and `end`; and
        `truncated`.
    """
    _check(text, "text")
    ids, offsets = runner.tokenizer.encode_with_offsets(text)
    row, is_cut = _framed(runner, "text", ids, truncate)
    probabilities = _call(runner, row)["probabilities"][0]
    begin, labels = len(runner.manifest["begin"]), runner.manifest["labels"]
    ends = [end for _, end in offsets[: _room(runner)]]
    words = []
    for start, end in word_spans(text):
        token = int(np.searchsorted(ends, start, side="right"))  # first token that ends after start
        if token == len(ends):
            break
        row = probabilities[begin + token]
        best = int(row.argmax())
        word = {"text": text[start:end], "label": labels[best], "probability": float(row[best])}
        words.append({**word, "start": start, "end": end})
    return {"words": words, "truncated": is_cut}


def regress(runner: "LiteRTModel", text: str, truncate: bool) -> JSON:
    """Predict a number for a text; return `value` and `truncated`."""
    row, is_cut = _framed(runner, "text", _encoded(runner, "text", text), truncate)
    return {"value": float(_call(runner, row)["value"][0]), "truncated": is_cut}


def embed(runner: "LiteRTModel", text: str, truncate: bool) -> np.ndarray:
    """Return the embedding of a text, a float32 array (D,)."""
    row, _ = _framed(runner, "text", _encoded(runner, "text", text), truncate)
    return _call(runner, row)["embedding"][0]


def answer(runner: "LiteRTModel", question: str, context: str, truncate: bool) -> JSON:
    """Answer a question; return `text`, `start`, `end`, `probability` and `truncated`."""
    ids = _encoded(runner, "question", question)
    _check(context, "context")
    pair_room = _room(runner) - len(runner.manifest["separators"])
    longest = pair_room // 2
    is_cut = len(ids) > longest
    if is_cut and not truncate:
        raise InputError(
            f"`question` has {len(ids)} tokens, but the maximum is {longest}; shorten it or use "
            "`truncate=True`."
        )
    ids = ids[:longest]
    context_ids, offsets = runner.tokenizer.encode_with_offsets(context)
    first, last, probability = _best_span(runner, ids, context_ids, pair_room - len(ids))
    if first is None:
        return {"text": "", "start": 0, "end": 0, "probability": probability, "truncated": is_cut}
    start, text = offsets[first][0], context[offsets[first][0] : offsets[last][1]]
    start += len(text) - len(text.lstrip(WHITE_SPACE))
    text = text.strip(WHITE_SPACE)
    span = {"text": text, "start": start, "end": start + len(text)}
    return {**span, "probability": probability, "truncated": is_cut}


def fill_mask(runner: "LiteRTModel", text: str, top_k: int, truncate: bool) -> JSON:
    """Fill the mask tokens of a text.

    Returns:
        A dict of `text`, `tokens` (for each mask token a list of pairs (token, probability)) and
        `truncated`.
    """
    _check(text, "text")
    mask_id, filler = (
        runner.tokenizer.mask_id,
        runner.cached("filler", lambda: MaskFiller(runner.tokenizer)),
    )
    if filler.mask_token not in text:
        raise InputError(f"`text` must have at least one {filler.mask_token}.")
    row, is_cut = _framed(runner, "text", filler.encode(text), truncate)
    places = [i for i, token in enumerate(row) if token == mask_id]
    count = runner.manifest["masks"]
    best, tokens = [], []
    for begin in range(0, len(places), count):
        batch = places[begin : begin + count]
        positions = np.array([batch + [0] * (count - len(batch))], "int32")
        logits = _call(runner, row, mask_positions=positions)["logits"][0, : len(batch)]
        for probabilities in _probabilities(logits, filler.is_special):
            order = np.argsort(-probabilities, kind="stable")[:top_k]
            best.append(int(order[0]))
            tokens.append([(filler.display(int(i)), float(probabilities[i])) for i in order])
    return {"text": filler.fill(text, best), "tokens": tokens, "truncated": is_cut}


def _probabilities(logits, is_special):
    """Convert logits (M, V) to probabilities over the tokens that are not special."""
    banned = np.pad(is_special, (0, logits.shape[-1] - len(is_special)), constant_values=True)
    logits = np.where(banned, np.float32(-1e30), logits)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _best_span(runner, question, context, room):
    """Find the best answer span in a context that is read in overlapping windows.

    Returns:
        The first and last token of the span, both None if there is no answer, and its probability.
    """
    if not context:
        return None, None, 0.0
    manifest = runner.manifest
    head = [*manifest["begin"], *question, *manifest["separators"]]
    positions = np.arange(manifest["max_length"])
    segments = (positions >= len(head)).astype("int32")[None]
    starts = window_starts(len(context), room)
    logits, is_context = [], []
    for first in starts:
        part = context[first : first + room]
        outputs = _call(runner, [*head, *part, *manifest["end"]], segment_ids=segments)
        logits.append([outputs[side][0].astype("float32") for side in ("start", "end")])
        is_context.append((positions >= len(head)) & (positions < len(head) + len(part)))
    start, end = np.stack(logits, axis=1)
    unanswerable = manifest.get("unanswerable", False)  # older files lack the key
    span = best_span(
        np,
        start[None],
        end[None],
        np.stack(is_context)[None],
        longest=manifest["longest_answer"],
        unanswerable=unanswerable,
    )
    probability = float(np.exp(span.log_probability[0]))
    if span.is_empty[0]:
        return None, None, probability
    first = starts[span.window[0]] + int(span.start[0]) - len(head)
    return first, first + int(span.length[0]), probability


def _call(runner, row, **more):
    token_ids = np.full((1, runner.max_length), runner.tokenizer.pad_id, "int32")
    token_ids[0, : len(row)] = row
    inputs = {"token_ids": token_ids, "lengths": np.array([len(row)], "int32"), **more}
    return runner.runtime.run(runner.manifest["signature"], inputs)


def _room(runner):
    manifest = runner.manifest
    return runner.max_length - len(manifest["begin"]) - len(manifest["end"])


def _framed(runner, name, ids, truncate):
    room = _room(runner)
    if len(ids) > room and not truncate:
        raise InputError(
            f"`{name}` has {len(ids)} tokens; the file takes at most {room}. Shorten it or use "
            "`truncate=True`."
        )
    return [*runner.manifest["begin"], *ids[:room], *runner.manifest["end"]], len(ids) > room


def _encoded(runner, name, text):
    _check(text, name)
    return runner.tokenizer.encode(text)


def _check(text, name):
    if not isinstance(text, str) or not text:
        raise InputError(f"`{name}` must be a non-empty str, got {text!r}.")
