"""Build the graphs of tasks with a head, from texts to the outputs of the head."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_llm.export.saved_model.signatures.base import STRINGS, GraphModule, clean, lengths_of
from keras_llm.tokenizers.word_segmentation import word_spans_in_graph
from keras_llm.types import Tensor


class HeadModule(GraphModule):
    """Base class of the graphs of tasks with a head; texts that are too long are truncated."""

    def framed(self, ids: tf.RaggedTensor) -> tuple[Tensor, Tensor, Tensor]:
        """Truncate ragged ids (B, None), add begin and end tokens, and pad on the right.

        Returns:
            Int32 (B, T), lengths (B,), and whether a row was truncated, bool (B,).
        """
        task = self.task
        truncated = lengths_of(ids) > task.room
        ids = ids[:, : task.room]
        rows = ids.nrows(out_type=tf.int32)
        parts = [[tf.fill((rows, 1), token) for token in ends] for ends in (task.begin, task.end)]
        ids = tf.concat([*parts[0], ids, *parts[1]], axis=1)
        return ids.to_tensor(task.tokenizer.pad_id), lengths_of(ids), truncated


class TextEmbeddingModule(HeadModule):
    """The graph of a `TextEmbedding`, with the signature `embed`."""

    main = "embed"

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        return {"embed": (self._embed, {"text": STRINGS})}

    def _embed(self, text):
        ids = self.task.tokenizer.tokenize(clean("text", text))
        token_ids, lengths, truncated = self.framed(ids)
        return {"embedding": self.task.outputs(token_ids, lengths), "truncated": truncated}


class TextRegressionModule(HeadModule):
    """The graph of a `TextRegression`, with the signature `regress`."""

    main = "regress"

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        return {"regress": (self._regress, {"text": STRINGS})}

    def _regress(self, text):
        ids = self.task.tokenizer.tokenize(clean("text", text))
        token_ids, lengths, truncated = self.framed(ids)
        return {"value": self.task.outputs(token_ids, lengths), "truncated": truncated}


class TextClassificationModule(HeadModule):
    """The graph of a `TextClassification`, with the signature `classify`."""

    main = "classify"

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        return {"classify": (self._classify, {"text": STRINGS})}

    def _classify(self, text):
        text = clean("text", text)
        ids = self.task.tokenizer.tokenize(text)
        token_ids, lengths, truncated = self.framed(ids)
        probabilities = self.task.probabilities(token_ids, lengths)
        labels = tf.constant(self.task.labels)
        shape = (tf.size(text), tf.size(labels))
        return {
            "label": tf.gather(labels, tf.argmax(probabilities, axis=-1)),
            "probability": tf.reduce_max(probabilities, axis=-1),
            "labels": tf.broadcast_to(labels, shape),
            "probabilities": probabilities,
            "truncated": truncated,
        }


class TokenClassificationModule(HeadModule):
    """The graph of a `TokenClassification`, with the signature `tag`.

    W is the largest number of words of a text; rows with fewer words are padded with "", -1 or 0.
    """

    main = "tag"

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        return {"tag": (self._tag, {"text": STRINGS})}

    def _tag(self, text):
        task = self.task
        text = clean("text", text)
        ids, _, ends = task.tokenizer.tokenize_with_offsets(text)
        token_ids, lengths, truncated = self.framed(ids)
        probabilities = task.probabilities(token_ids, lengths)  # (B, T, C)
        ends = ends[:, : task.room]
        word_starts, word_ends = (x.to_tensor(-1) for x in word_spans_in_graph(text))
        # The token with the first character of a word is the first token that ends after it.
        padding = tf.int32.max
        token = tf.searchsorted(ends.to_tensor(padding), word_starts, side="right")
        is_word = (word_starts >= 0) & (token < tf.expand_dims(lengths_of(ends), 1))
        token = tf.where(is_word, token, 0) + len(task.begin)
        last = tf.shape(probabilities)[1] - 1
        chosen = tf.gather(probabilities, tf.minimum(token, last), batch_dims=1)  # (B, W, C)
        label = tf.gather(tf.constant(task.labels), tf.argmax(chosen, axis=-1))
        size = tf.where(is_word, word_ends - word_starts, 0)
        begin = tf.where(is_word, word_starts, 0)
        words = tf.strings.substr(
            tf.repeat(tf.expand_dims(text, 1), tf.shape(token)[1], axis=1),
            begin,
            size,
            unit="UTF8_CHAR",
        )
        return {
            "word": words,
            "label": tf.where(is_word, label, ""),
            "probability": tf.where(is_word, tf.reduce_max(chosen, axis=-1), 0.0),
            "start": tf.where(is_word, word_starts, -1),
            "end": tf.where(is_word, word_ends, -1),
            "num_words": tf.reduce_sum(tf.cast(is_word, tf.int32), axis=-1),
            "truncated": truncated,
        }
