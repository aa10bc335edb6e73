"""Run SentencePiece models with TensorFlow Text's operations."""

import functools
import hashlib
from typing import Any

from keras_llm.errors import optional_packages
from keras_llm.silence import silent_stderr
from keras_llm.tokenizers import sentencepiece_model
from keras_llm.tokenizers.graph.ragged import repeat
from keras_llm.types import Tensor

_CUT = b"\xff"  # never occurs in UTF-8
# Scores are sums of multiples of 1/128 (see `sentencepiece_model.exact`), which float32 represents
# exactly up to this value.
_EXACT = 2**17


class SentencePieceGraph:
    """A SentencePiece model inside a graph.

    The operation of TensorFlow Text adds up scores in float32. To keep the sums exact, long texts
    are cut before spaces and, if possible, after tabs and lines, where no token crosses the border.

    Args:
        model: bytes, a serialized SentencePiece model.

    Attributes:
        resources: list of the models.
    """

    def __init__(self, model: bytes) -> None:
        self._whole = _kernel(model)
        self.resources = [self._whole]
        facts = sentencepiece_model.facts(model)
        self._longest = int(_EXACT / facts.most_per_byte) if facts.is_cuttable else None
        self._cuts_lines = facts.is_cuttable_at_lines
        # A part must not get the space that is put before a text, unless white space is removed.
        self._removes_spaces = facts.remove_extra_whitespaces
        self._adds_space = facts.add_dummy_prefix and not facts.remove_extra_whitespaces
        self._parts = self._whole
        if self._longest and self._adds_space:
            self._parts = _kernel(sentencepiece_model.without_prefix(model))
            self.resources.append(self._parts)

    def tokenize(self, strings: Tensor) -> Tensor:
        """Encode a string tensor (B,) as an int32 `tf.RaggedTensor` (B, None)."""
        import tensorflow as tf

        strings = tf.convert_to_tensor(strings, tf.string)
        if not self._longest:
            return self._whole.tokenize(strings)

        def cut():
            parts = self._cut(strings)
            ids = parts.with_values(self._parts.tokenize(parts.values)).merge_dims(1, 2)
            return ids.values, ids.row_splits

        def whole():
            ids = self._whole.tokenize(strings)
            return ids.values, ids.row_splits

        return tf.RaggedTensor.from_row_splits(*tf.cond(self._is_long(strings), cut, whole))

    def tokenize_with_offsets(self, strings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a string tensor (B,), with starts and ends in bytes."""
        import tensorflow as tf

        strings = tf.convert_to_tensor(strings, tf.string)
        if not self._longest:
            return self._whole.tokenize_with_offsets(strings)

        def cut():
            parts = self._cut(strings)
            ids, *offsets = self._parts.tokenize_with_offsets(parts.values)
            lengths = parts.with_values(tf.strings.length(parts.values))
            first = repeat(parts.row_starts(), parts.row_lengths())
            before = tf.cast(tf.cumsum(lengths.values, exclusive=True), tf.int64)
            before -= tf.gather(before, first)
            before = repeat(before, ids.row_lengths())
            begin = int(self._adds_space)
            starts, ends = (
                tf.maximum(tf.cast(offset.values, tf.int64) + before - begin, 0)
                for offset in offsets
            )
            if self._removes_spaces:  # the first token of a part spans the spaces before it
                begins = tf.ragged.range(ids.row_lengths()).values == 0
                starts = tf.where(begins & (before > 0), before, starts)
            ids = parts.with_values(ids).merge_dims(1, 2)
            return ids.values, starts, ends, ids.row_splits

        def whole():
            ids, *offsets = self._whole.tokenize_with_offsets(strings)
            starts, ends = (tf.cast(offset.values, tf.int64) for offset in offsets)
            return ids.values, starts, ends, ids.row_splits

        *values, splits = tf.cond(self._is_long(strings), cut, whole)
        ids, starts, ends = (tf.RaggedTensor.from_row_splits(value, splits) for value in values)
        return ids, starts, ends

    def detokenize(self, ids: Tensor) -> Tensor:
        """Decode an int32 tensor (B, T) or ragged (B, None) to a string tensor (B,)."""
        return self._whole.detokenize(ids)

    def _is_long(self, strings):
        import tensorflow as tf

        lengths = tf.strings.length(strings)
        return tf.reduce_max(tf.concat([[0], lengths], axis=0)) > self._longest

    def _cut(self, strings):
        """Split strings (B,) before spaces and after tabs and lines: string ragged (B, None)."""
        import tensorflow as tf

        if self._adds_space:
            strings = tf.where(strings == "", "", tf.strings.join([" ", strings]))
        cut = tf.strings.regex_replace(strings, "([!-~])( )", rb"\1" + _CUT + rb"\2")
        if self._cuts_lines:
            cut = tf.strings.regex_replace(cut, "([\t\n\r]+)", rb"\1" + _CUT)
        return tf.strings.split(cut, _CUT)


@functools.cache
def _kernel(model: bytes) -> Any:
    import tensorflow as tf

    with optional_packages("a SentencePiece graph"):
        import tensorflow_text
        from tensorflow_text.python.ops import sentencepiece_tokenizer

    create = sentencepiece_tokenizer.gen_sentencepiece_tokenizer.sentencepiece_op
    name = "sentencepiece_" + hashlib.sha256(model).hexdigest()

    class Model(tf.saved_model.experimental.TrackableResource):
        # Without a unique name, `keras.utils.clear_session` would delete the resource with its
        # kernel, and two models in a loaded SavedModel would share one resource.
        def _create_resource(self):
            return create(model=model, shared_name=name)

    with tf.init_scope(), silent_stderr():  # it logs that a model does not normalize
        tokenizer = tensorflow_text.SentencepieceTokenizer(model, out_type=tf.int32)
        tokenizer._model_resource = Model()
        _ = tokenizer._model_resource.resource_handle  # create it outside of graphs that use it
    return tokenizer
