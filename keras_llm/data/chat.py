"""Turn conversations into batches whose loss covers only the assistant's messages."""

import collections
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from keras_llm.data.batches import batch_plan, padded_dataset
from keras_llm.data.readers.conversations import Preference, is_learned
from keras_llm.errors import InputError
from keras_llm.tokenizers import ChatTemplate, Tokenizer
from keras_llm.types import JSON, Dataset


class ChatExample(NamedTuple):
    """A tokenized conversation.

    Attributes:
        token_ids: list of int (N,).
        learned: list of int (N,), 1 for tokens that count in the loss, otherwise 0.
    """

    token_ids: list[int]
    learned: list[int]


def chat_examples(
    conversations: list[list[JSON]],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    max_length: int,
    end_token_ids: Collection[int] = (),
) -> tuple[list[ChatExample], dict[str, int]]:
    """Render conversations with a template and mark the assistant's messages.

    The loss covers the tokens that the model has to generate: the text of each assistant message
    and the token that ends its turn, but not the text that the template adds around it (see
    `tokenizers.ChatTemplate.parts`). The text is split at the start and end of each answer before
    tokenization, so that no token is partly in the loss. Messages with `weight` 0 are only context.

    Args:
        conversations: list of lists of messages, as from `read_conversations`.
        template: `tokenizers.ChatTemplate`, e.g. `task.chat_template`.
        tokenizer: `tokenizers.Tokenizer`.
        max_length: int > 1. Longer conversations keep only the first turns that fit.
        end_token_ids: ints, the tokens that may end a turn, e.g. `task.end_token_ids`. If an
            answer has none of them, all text that the template renders for it is learned.

    Returns:
        A list of `ChatExample`, which end with the last learned token; and a dict of the number of
        conversations that were dropped or shortened, by reason.

    Raises:
        InputError: if the template rejects a conversation or does not show what the assistant
            says; the message names the conversation.
    """
    examples: list[ChatExample] = []
    dropped: collections.Counter[str] = collections.Counter()
    for number, messages in enumerate(conversations, 1):
        if _spells_special(messages, tokenizer):
            dropped["spells a special token"] += 1
            continue
        token_ids, answers = _encode(messages, template, tokenizer, end_token_ids, number)
        answers = _learned(answers, messages, number)
        fit = [answer for answer in answers if answer[1] <= max_length]
        if not fit:
            dropped[f"longer than {max_length} tokens" if answers else "nothing to learn"] += 1
            continue
        dropped["later turns cut"] += len(fit) < len(answers)
        examples.append(_example(token_ids, fit))
    return examples, {reason: count for reason, count in dropped.items() if count}


def preference_examples(
    preferences: list[Preference],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    max_length: int,
    end_token_ids: Collection[int] = (),
) -> tuple[list[tuple[ChatExample, ChatExample]], dict[str, int]]:
    """Tokenize pairs of conversations that differ in the last answer, the only learned part.

    Args:
        preferences: list of `Preference`.
        template, tokenizer, end_token_ids: see `chat_examples`.
        max_length: int > 1. Pairs with a longer conversation are dropped.

    Returns:
        A list of pairs of `ChatExample`, the chosen one first; and a dict of the number of dropped
        pairs, by reason.

    Raises:
        InputError: see `chat_examples`.
    """
    dropped: collections.Counter[str] = collections.Counter()
    pairs = []
    for number, (messages, *answers) in enumerate(preferences, 1):
        both = [[*messages, {"role": "assistant", "content": text}] for text in answers]
        if any(_spells_special(conversation, tokenizer) for conversation in both):
            dropped["spells a special token"] += 1
            continue
        pair = []
        for conversation in both:
            ids, spans = _encode(conversation, template, tokenizer, end_token_ids, number)
            pair.append(_example(ids, spans[-1:]))
        if max(len(example.token_ids) for example in pair) > max_length:
            dropped[f"longer than {max_length} tokens"] += 1
            continue
        pairs.append(tuple(pair))
    return pairs, dict(dropped)


def chat_dataset(
    examples: list[ChatExample],
    batch_size: int,
    pad_id: int,
    epochs: int = 1,
    seed: int | None = None,
) -> Dataset:
    """Create batches of conversations of similar length.

    Args:
        examples: list of `ChatExample`.
        batch_size: int > 0. B.
        pad_id: int.
        epochs, seed: see `batch_plan`.

    Returns:
        `tf.data.Dataset` of token ids and targets shifted by one, int32 (B, T), and weights,
        float32 (B, T), 1 for learned targets: the input of `training.LanguageModelTrainer`.

    Raises:
        InputError: with a seed, if there are fewer examples than `batch_size`.
    """
    plan = batch_plan([len(example.token_ids) for example in examples], batch_size, epochs, seed)
    return _padded(examples, plan, pad_id).map(lambda batch: _three(batch, batch["ids"]))


def preference_dataset(
    pairs: list[tuple[ChatExample, ChatExample]],
    batch_size: int,
    pad_id: int,
    reference: np.ndarray | None = None,
    epochs: int = 1,
    seed: int | None = None,
) -> Dataset:
    """Create batches of pairs of similar length.

    Args:
        pairs: list of pairs of `ChatExample`, the preferred one first.
        batch_size: int > 0, pairs per batch. B.
        pad_id: int.
        reference: float array (N, 2), the log-probabilities of the learned tokens of each pair
            under a reference model (see `training.log_probabilities`), or None.
        epochs, seed: see `batch_plan`.

    Returns:
        `tf.data.Dataset` as from `chat_dataset`, with shapes (B, 2, T): the chosen and then the
        rejected answer of each pair. Its first element is a dict of `token_ids` (B, 2, T) and, if
        given, `reference` float32 (B, 2): the input of `training.PreferenceTrainer`.

    Raises:
        InputError: with a seed, if there are fewer pairs than `batch_size`.
    """
    rows = [example for pair in pairs for example in pair]
    plan = batch_plan(
        [max(len(one.token_ids), len(other.token_ids)) for one, other in pairs],
        batch_size,
        epochs,
        seed,
    )
    both = [np.stack([2 * batch, 2 * batch + 1], axis=1).reshape(-1) for batch in plan]
    arrays = {}
    if reference is not None:
        arrays["reference"] = np.asarray(reference, "float32").reshape(-1)

    def inputs(batch):
        return {"token_ids": batch["ids"], **{name: batch[name] for name in arrays}}

    padded = _padded(rows, both, pad_id, arrays).map(lambda batch: _three(batch, inputs(batch)))
    return padded.map(_in_pairs)


def _in_pairs(*parts):
    """Reshape tensors (2 B, ...) to (B, 2, ...)."""
    import tensorflow as tf

    def paired(rows):
        return tf.reshape(rows, tf.concat([[-1, 2], tf.shape(rows)[1:]], 0))

    return tf.nest.map_structure(paired, parts)


def _padded(examples, plan, pad_id, arrays=None):
    columns = {
        "ids": [example.token_ids[:-1] for example in examples],
        "targets": [example.token_ids[1:] for example in examples],
        "learned": [example.learned[1:] for example in examples],
        **(arrays or {}),
    }
    return padded_dataset(columns, plan, {"ids": pad_id, "targets": pad_id, "learned": 0})


def _three(batch, inputs):
    import tensorflow as tf

    return inputs, batch["targets"], tf.cast(batch["learned"], tf.float32)


def _encode(messages, template, tokenizer, end_token_ids, number):
    """Return token ids, and the spans (begin, end) of the answers in them."""
    try:
        parts = template.parts([{k: m[k] for k in m if k != "weight"} for m in messages])
    except InputError as error:
        raise InputError(f"conversation {number}: {error}") from None
    ids, text, spans = [], "", []
    for part, is_answer in parts:
        whole = tokenizer.encode(text + part, parse_special=True)
        crosses = whole[: len(ids)] != ids  # a token crosses the boundary
        new = tokenizer.encode(part, parse_special=True) if crosses else whole[len(ids) :]
        if is_answer:
            ends = [place for place, index in enumerate(new, 1) if index in end_token_ids]
            spans.append((len(ids), len(ids) + (ends[-1] if ends else len(new))))
        ids = ids + new
        text += part
    return ids, spans


def _learned(spans, messages, number):
    """Return the spans of the answers without those of messages with weight 0."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if all(map(is_learned, answers)):
        return spans
    if len(spans) != len(answers):
        raise InputError(
            f"conversation {number}: `weight` requires a chat template that marks one part per "
            f"assistant message; it marks {len(spans)} for {len(answers)}."
        )
    return [span for span, message in zip(spans, answers, strict=True) if is_learned(message)]


def _example(token_ids, spans):
    learned = np.zeros(spans[-1][1], int)
    for begin, end in spans:
        learned[begin:end] = 1
    return ChatExample(token_ids[: len(learned)], learned.tolist())


def _spells_special(messages, tokenizer):
    texts = [message["content"] for message in messages]
    return any(token in text for token in tokenizer.special_tokens for text in texts)
