"""Build the graph that answers questions with a span of a context."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_llm.export.saved_model.signatures.base import (
    STRINGS,
    GraphModule,
    check,
    lengths_of,
    text_checks,
    utf8,
)
from keras_llm.tasks.answer_spans import best_spans
from keras_llm.tokenizers.mask_filling import WHITE_SPACE


class QuestionAnsweringModule(GraphModule):
    """The graph of a `QuestionAnswering`, with the signature `answer`.

    Contexts can have any length; questions that are too long are truncated.
    """

    main = "answer"

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        return {"answer": (self._answer, {"question": STRINGS, "context": STRINGS})}

    def _answer(self, question, context):
        task, tokenizer = self.task, self.task.tokenizer
        checks = [
            check(
                tf.size(question) == tf.size(context), "context must have as many texts as question"
            ),
            *text_checks("question", question),
            *text_checks("context", context),
        ]
        with tf.control_dependencies(checks):
            question, context = utf8(question), utf8(context)
        question_ids = tokenizer.tokenize(question)
        truncated = lengths_of(question_ids) > task.question_room
        question_ids = question_ids[:, : task.question_room]
        context_ids, starts, ends = tokenizer.tokenize_with_offsets(context)
        lengths = lengths_of(context_ids)
        span = best_spans(
            task,
            _dense(question_ids, tokenizer.pad_id),
            lengths_of(question_ids),
            _dense(context_ids, tokenizer.pad_id),
            lengths,
        )
        start, end = (
            tf.where(span["found"], tf.gather(_dense(places, 0), span[side], batch_dims=1), 0)
            for side, places in (("start", starts), ("end", ends))
        )
        answer = _part(context, start, end)
        white = "[" + "".join(rf"\x{{{ord(character):x}}}" for character in WHITE_SPACE) + "]+"
        trimmed = tf.strings.regex_replace(answer, "^" + white, "")
        start += _characters(answer) - _characters(trimmed)
        trimmed = tf.strings.regex_replace(trimmed, white + "$", "")
        return {
            "answer": trimmed,
            "start": start,
            "end": start + _characters(trimmed),
            "probability": span["probability"],
            "truncated": truncated,
        }


def _dense(ragged, default):
    """Convert ragged (B, None) to dense (B, T) with at least one column."""
    dense = ragged.to_tensor(default)
    return tf.pad(
        dense, [[0, 0], [0, tf.maximum(1 - tf.shape(dense)[1], 0)]], constant_values=default
    )


def _part(strings, start, end):
    return tf.strings.substr(strings, start, end - start, unit="UTF8_CHAR")


def _characters(strings):
    return tf.strings.length(strings, unit="UTF8_CHAR")
