"""Explain a model's output for one text: attention, logit lens, attributions and neighbors."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.tasks.base import Task, checked_texts
from keras_llm.tasks.gradients import integrated_gradients
from keras_llm.tasks.head import HeadTask
from keras_llm.tasks.masked_language_model import MaskedLanguageModel
from keras_llm.tasks.question_answering import QuestionAnswering
from keras_llm.tasks.text_classification import TextClassification
from keras_llm.tasks.text_generation import TextGeneration
from keras_llm.tasks.translation import Translation
from keras_llm.tasks.word_vectors import WordVectors
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON

_WORDS = 12  # tokens whose nearest neighbors are computed


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The internals of a model for one text. Fields that a task does not support are None.

    Attributes:
        task: str, the class of the task.
        text: str, the input; for question answering, question and context.
        tokens: list of T str, the tokens that the model reads.
        result: str, the task's output for the text.
        attention: list of attention probabilities per block, float32 (N, T, T), queries in rows;
            for a `Translation`, those of the encoder. None if a composed model has none.
        heads: list of dicts, see `summarize_heads`.
        lens: dict for a model from `causal_lm`. `tokens`: for each layer (embeddings first) and
            position, the most likely next token, str. `probabilities`: float32 (L + 1, T), the
            probabilities of these tokens.
        attributions: dict for `TextClassification`, see `gradients.integrated_gradients`, with
            `label`, str, the predicted label.
        neighbors: dict from each token of the text to a list of pairs (token, cosine), the tokens
            with the nearest embeddings. None if a composed model has no single token embedding.
    """

    task: str
    text: str
    tokens: list[str]
    result: str
    attention: list[np.ndarray] | None
    heads: list[JSON] | None
    lens: dict[str, Any] | None
    attributions: dict[str, Any] | None
    neighbors: dict[str, list[tuple[str, float]]] | None


def explain(
    task: Task, text: str, context: str | None = None, max_tokens: int = 64, count: int = 5
) -> Explanation:
    """Explain a task's output for one text.

    Args:
        task: any task.
        text: str, not empty; for `QuestionAnswering` the question, for `WordVectors` a word.
        context: str, for tasks that read a context.
        max_tokens: int > 0. Longer texts are truncated.
        count: int > 0, the number of neighbors per token.

    Returns:
        An `Explanation`.

    Raises:
        InputError: if an argument is invalid, naming it.
    """
    for name, value in (("max_tokens", max_tokens), ("count", count)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"`{name}` must be a positive int, got {value!r}.")
    (text,) = checked_texts("text", [text])
    takes_context = isinstance(task, QuestionAnswering)
    if context is not None:
        (context,) = checked_texts("context", [context])
        if not takes_context and "context_separator" not in task.metadata:
            raise InputError("`context` is only for models that read one.")
    elif takes_context:
        raise InputError("`context` is missing: question answering requires one.")
    if isinstance(task, WordVectors):
        near = task.nearest(text, count)
        return Explanation(
            "WordVectors", text, [text], near[0][0], None, None, None, None, {text: near}
        )
    if context is not None and not takes_context:
        (text,) = task.with_contexts([text], [context])
    row, segments = _row(task, text, context, max_tokens)
    inputs = _inputs(task, row, segments)
    attention = _attention(task, inputs)
    texts = [text, context] if takes_context and context is not None else [text]
    lens = attributions = None
    if isinstance(task.model, models.CausalLM):
        lens = _lens(task, row)
    if isinstance(task, TextClassification):
        attributions = _attributions(task, inputs)
    return Explanation(
        type(task).__name__,
        "\n".join(texts),
        [_shown(task.tokenizer, index) for index in row],
        _result(task, texts),
        attention,
        None if attention is None else summarize_heads(attention),
        lens,
        attributions,
        _neighbors(task, row, count),
    )


def summarize_heads(attention: Iterable[np.ndarray]) -> list[JSON]:
    """Summarize the attention pattern of each head.

    Args:
        attention: list of L float arrays (N, T, T), one per block.

    Returns:
        A list of L * N dicts: `layer` and `head`, from 0; and means over the T queries of `entropy`
        (nats), `distance` (tokens between query and key), and the attention probability `to_first`
        (the first token), `to_self` and `to_previous` (the token before).
    """
    rows = []
    for layer, maps in enumerate(attention):
        positions = np.arange(maps.shape[-1])
        distance = np.abs(positions[:, None] - positions)
        for head, p in enumerate(np.asarray(maps, "float64")):
            before = np.diagonal(p, -1).sum() / len(p)
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "entropy": float(-(p * np.log(np.maximum(p, 1e-30))).sum(-1).mean()),
                    "distance": float((p * distance).sum(-1).mean()),
                    "to_first": float(p[:, 0].mean()),
                    "to_self": float(np.diagonal(p).mean()),
                    "to_previous": float(before),
                }
            )
    return rows


def nearest_tokens(
    task: Task, token_ids: Iterable[int], count: int = 5
) -> dict[str, list[tuple[str, float]]]:
    """Return the nearest neighbors of tokens by cosine similarity of their embeddings.

    Args:
        task: any task with token embeddings.
        token_ids: list of ints. Only the first 12 distinct tokens that are not special are used.
        count: int > 0.

    Returns:
        A dict from each token to a list of pairs (token, cosine), nearest first.
    """
    tokenizer = task.tokenizer
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    ids = [i for i in dict.fromkeys(token_ids) if i not in special | {tokenizer.mask_id}][:_WORDS]
    table = np.asarray(models.token_table(task.model), "float32")[: tokenizer.vocabulary_size]
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    neighbors = {}
    for index in ids:
        cosines = table @ table[index]
        cosines[index] = -np.inf
        best = np.argsort(-cosines, kind="stable")[:count]
        neighbors[_shown(tokenizer, index)] = [
            (_shown(tokenizer, int(i)), float(cosines[i])) for i in best
        ]
    return neighbors


def _row(task, text, context, max_tokens):
    """Return the token ids that the model reads and their segment ids, two lists of ints."""
    if isinstance(task, QuestionAnswering):
        question, rest = (task.tokenizer.encode(part) for part in (text, context))
        head = [*task.begin, *question[: task.question_room], *task.separators]
        room = min(task.model.config.max_length, max_tokens) - len(head) - len(task.end)
        if room < 1:
            raise InputError(f"`max_tokens` of {max_tokens} leaves no room for the context.")
        row = [*head, *rest[:room], *task.end]
        return row, [int(i >= len(head)) for i in range(len(row))]
    if isinstance(task, MaskedLanguageModel):
        parts, mask = text.split(task.mask_token), [task.tokenizer.mask_id]
        ids = task.tokenizer.encode(parts[0])
        for part in parts[1:]:
            ids += mask + task.tokenizer.encode(part)
    elif isinstance(task, HeadTask):
        ids = task.tokenizer.encode(text)
    else:
        ids = task.tokenizer.encode_prompt(text)
    if isinstance(task, HeadTask):
        (row,), _ = task.framed("text", [ids[: max(1, max_tokens - 2)]], True)
    else:
        row = ids[: min(max_tokens, task.model.config.max_length)]
    if not row:
        raise InputError("`text` has no tokens.")
    return row, [0] * len(row)


def _inputs(task, row, segments):
    """Return the model's inputs for one row, a dict of arrays."""
    ids = np.array([row], "int32")
    if not isinstance(task, HeadTask):
        name = "encoder_token_ids" if isinstance(task, Translation) else "token_ids"
        return {name: ids}
    segments = np.array([segments], "int32")
    more = {"mask_positions": np.zeros((1, 1), "int32")} if task.head == "masked_lm" else {}
    return task.inputs(ids, np.array([len(row)], "int32"), segments, **more)


def _attention(task, inputs):
    """Return the attention probabilities, or None if a composed model has no attention."""
    try:
        maps = models.attention_maps(task.model, inputs)
    except InputError:
        return None
    length = len(next(iter(inputs.values()))[0])  # a composed model may pad the row
    return [np.asarray(x)[0, :, :length, :length] for x in maps]


def _neighbors(task, row, count):
    """Return the nearest tokens, or None if a composed model has no embedding of tokens."""
    try:
        return nearest_tokens(task, row, count)
    except InputError:
        return None


def _result(task, texts):
    """Return the task's output as a str."""
    if isinstance(task, (TextGeneration, Translation)):
        return task(*texts, max_new_tokens=20, temperature=0.0)
    if isinstance(task, MaskedLanguageModel) and task.mask_token not in texts[0]:
        return ""
    if task.head == "sentence_embedder":
        return ""
    output = task(*texts, truncate=True)
    if isinstance(output, (str, float)):
        return str(output)
    return " ".join(f"{word}/{label}" for word, label in output)


def _lens(task, row):
    logits = models.logit_lens(task.model, np.array([row], "int32"))[:, 0]
    probabilities = np.asarray(ops.softmax(logits, axis=-1))
    best = probabilities.argmax(-1)
    return {
        "tokens": [[_shown(task.tokenizer, int(i)) for i in layer] for layer in best],
        "probabilities": np.take_along_axis(probabilities, best[..., None], -1)[..., 0],
    }


def _attributions(task, inputs):
    """Return the attribution of the predicted label to each token."""
    tokenizer = task.tokenizer
    logits = np.asarray(task.model(inputs))[0]
    row = np.array(inputs["token_ids"])
    special = [tokenizer.bos_id, tokenizer.eos_id]
    blank = tokenizer.mask_id if tokenizer.mask_id >= 0 else max(tokenizer.pad_id, 0)
    baseline = np.where(np.isin(row, special), row, blank)
    attributions = integrated_gradients(
        task.model,
        inputs,
        baseline,
        int(logits.argmax()),
        independent=bool(task.metadata.get("multi_label")),
    )
    return {"label": task.labels[int(logits.argmax())], **attributions}


def _shown(tokenizer: Tokenizer, index: int) -> str:
    return tokenizer.token(index)
