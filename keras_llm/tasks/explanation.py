"""Why a model says what it says of one text."""

import dataclasses

import numpy as np
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.tasks.base import checked_texts
from keras_llm.tasks.gradients import integrated_gradients
from keras_llm.tasks.head import HeadTask
from keras_llm.tasks.masked_language_model import MaskedLanguageModel
from keras_llm.tasks.question_answering import QuestionAnswering
from keras_llm.tasks.text_classification import TextClassification
from keras_llm.tasks.text_generation import TextGeneration
from keras_llm.tasks.translation import Translation
from keras_llm.tasks.word_vectors import WordVectors

_WORDS = 12  # whose neighbours are looked up


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What is known of a model's way through one text. What a task has not is None.

    Attributes:
        task: str, the class of the task.
        text: str, what was read; of a question with its context both.
        tokens: list of T str, the tokens that the model saw.
        result: str, what the task gives for the text.
        attention: list of each block's attention probabilities, float32 (N, T, T), queries in
            rows; of a `Translation` its encoder's.
        heads: list of dicts, see `summarize_heads`.
        lens: dict of `tokens`, a list with for each layer, the embeddings first, and each place
            the likeliest next token, str; and `probabilities`, float32 (L + 1, T), theirs
            (`TextGeneration`).
        attributions: dict, see `gradients.integrated_gradients`, with `label`, str, that was
            predicted (`TextClassification`).
        neighbours: dict from a token of the text to a list of pairs (token, cosine) of those with
            the nearest embeddings.
    """

    task: str
    text: str
    tokens: list
    result: str
    attention: list | None
    heads: list | None
    lens: dict | None
    attributions: dict | None
    neighbours: dict


def explain(task, text, context=None, max_tokens=64, count=5):
    """Look into a task while it reads a text.

    Args:
        task: any task.
        text: str, not empty; for a `QuestionAnswering` the question, for `WordVectors` a word.
        context: str, for a task that reads one.
        max_tokens: int > 0. Of a longer text the first tokens are read.
        count: int > 0, how many neighbours a token has.

    Returns:
        An `Explanation`.

    Raises:
        InputError: naming the argument that is wrong.
    """
    for name, value in (("max_tokens", max_tokens), ("count", count)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"`{name}` must be a positive int, got {value!r}.")
    (text,) = checked_texts("text", [text])
    takes_context = isinstance(task, QuestionAnswering)
    if context is not None:
        (context,) = checked_texts("context", [context])
        if not takes_context and "context_separator" not in task.metadata:
            raise InputError("`context` is for models that read one.")
    elif takes_context:
        raise InputError("`context` is missing.")
    if isinstance(task, WordVectors):
        near = task.nearest(text, count)
        return Explanation(
            "WordVectors", text, [text], near[0][0], None, None, None, None, {text: near}
        )
    if context is not None and not takes_context:
        (text,) = task.with_contexts([text], [context])
    row, segments = _row(task, text, context, max_tokens)
    inputs = _inputs(task, row, segments)
    attention = [np.asarray(x)[0] for x in models.attention_maps(task.model, inputs)]
    read = [text] if not takes_context else [text, context]
    lens = attributions = None
    if isinstance(task, TextGeneration):
        lens = _lens(task, row)
    if isinstance(task, TextClassification):
        attributions = _attributions(task, inputs)
    return Explanation(
        type(task).__name__,
        "\n".join(read),
        [_shown(task.tokenizer, index) for index in row],
        _result(task, read),
        attention,
        summarize_heads(attention),
        lens,
        attributions,
        nearest_tokens(task, row, count),
    )


def summarize_heads(attention):
    """What each head looks at.

    Args:
        attention: list of float arrays (N, T, T), of L blocks.

    Returns:
        A list of L * N dicts: `layer` and `head`, from 0; and, means over the T queries, `entropy`
        (nats), `distance` (tokens between query and key), and the shares of the attention that go
        `to_first` (the first token), `to_self` and `to_previous` (the token before).
    """
    rows = []
    for layer, maps in enumerate(attention):
        places = np.arange(maps.shape[-1])
        distance = np.abs(places[:, None] - places)
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


def nearest_tokens(task, token_ids, count=5):
    """The tokens whose embeddings have the highest cosine with those of some tokens.

    Args:
        task: any task with a table of embeddings.
        token_ids: list of ints, of which the first 12 different ones count; special tokens do not.
        count: int > 0.

    Returns:
        A dict from each token to a list of pairs (token, cosine), the nearest first.
    """
    tokenizer = task.tokenizer
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    asked = [i for i in dict.fromkeys(token_ids) if i not in special | {tokenizer.mask_id}][:_WORDS]
    table = np.asarray(models.token_table(task.model), "float32")[: tokenizer.vocabulary_size]
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    found = {}
    for index in asked:
        cosines = table @ table[index]
        cosines[index] = -np.inf
        best = np.argsort(-cosines, kind="stable")[:count]
        found[_shown(tokenizer, index)] = [
            (_shown(tokenizer, int(i)), float(cosines[i])) for i in best
        ]
    return found


def _row(task, text, context, max_tokens):
    """The tokens that the model reads, and their segments, two lists of ints."""
    if isinstance(task, QuestionAnswering):
        question, rest = (task.tokenizer.encode(part) for part in (text, context))
        head = [*task.begin, *question[: task.question_room], *task.separators]
        room = min(task.model.config.max_length, max_tokens) - len(head) - len(task.end)
        if room < 1:
            raise InputError(f"`max_tokens` of {max_tokens} has no room for the context.")
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
    """The model's inputs for one row, a dict of arrays."""
    ids = np.array([row], "int32")
    if not isinstance(task, HeadTask):
        name = "encoder_token_ids" if isinstance(task, Translation) else "token_ids"
        return {name: ids}
    segments = np.array([segments], "int32")
    more = {"mask_positions": np.zeros((1, 1), "int32")} if task.head == "masked_lm" else {}
    return task.inputs(ids, np.array([len(row)], "int32"), segments, **more)


def _result(task, read):
    """What the task gives, a str."""
    if isinstance(task, (TextGeneration, Translation)):
        return task(*read, max_new_tokens=20, temperature=0.0)
    if isinstance(task, MaskedLanguageModel) and task.mask_token not in read[0]:
        return ""
    if task.head == "sentence_embedder":
        return ""
    found = task(*read, truncate=True)
    return found if isinstance(found, str) else " ".join(f"{word}/{label}" for word, label in found)


def _lens(task, row):
    logits = models.logit_lens(task.model, np.array([row], "int32"))[:, 0]
    probabilities = np.asarray(ops.softmax(logits, axis=-1))
    best = probabilities.argmax(-1)
    return {
        "tokens": [[_shown(task.tokenizer, int(i)) for i in layer] for layer in best],
        "probabilities": np.take_along_axis(probabilities, best[..., None], -1)[..., 0],
    }


def _attributions(task, inputs):
    """How much each token speaks for the label that is predicted."""
    tokenizer = task.tokenizer
    logits = np.asarray(task.model(inputs))[0]
    row = np.array(inputs["token_ids"])
    special = [tokenizer.bos_id, tokenizer.eos_id]
    blank = tokenizer.mask_id if tokenizer.mask_id >= 0 else max(tokenizer.pad_id, 0)
    baseline = np.where(np.isin(row, special), row, blank)
    found = integrated_gradients(task.model, inputs, baseline, int(logits.argmax()))
    return {"label": task.labels[int(logits.argmax())], **found}


def _shown(tokenizer, index):
    return tokenizer.token(index)
