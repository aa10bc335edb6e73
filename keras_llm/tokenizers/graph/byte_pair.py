"""Run byte-pair encoding with TensorFlow's core operations."""

import numpy as np

from keras_llm.errors import InputError, optional_packages
from keras_llm.tokenizers.graph.ragged import encode_distinct, merge_by, repeat
from keras_llm.tokenizers.offsets import CharacterOffsets
from keras_llm.tokenizers.pre_tokenizers import PreTokenizer
from keras_llm.types import Tensor

# The bytes that can occur in UTF-8.
UTF8_BYTES = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]
_NONE = np.iinfo(np.int32).max  # no merge


class BytePairGraph:
    """Byte-pair encoding and decoding inside a graph.

    Words that are a single token are looked up. The other words are deduplicated and split into
    bytes in one flat vector. Each iteration of a loop merges the pair of lowest rank in every
    word, until no word has a pair left.

    Args:
        pre_tokenizer: a `PreTokenizer`.
        normalization: "NFC" or None.
        byte_ids: 256 ints, -1 for a byte to drop.
        merges: list of (left id, right id, merged id), in the order in which they were learned.
        whole_words: dict bytes -> id, words that are a single token.
        spelled: list of bytes, the decoded bytes of each id.

    Attributes:
        resources: list of the lookup tables.
    """

    def __init__(
        self,
        pre_tokenizer: PreTokenizer,
        normalization: str | None,
        byte_ids: list[int],
        merges: list[tuple[int, int, int]],
        whole_words: dict[bytes, int],
        spelled: list[bytes],
    ) -> None:
        import tensorflow as tf

        self._pre_tokenizer = pre_tokenizer
        self._normalization = normalization
        self._vocabulary_size = len(spelled)
        self._spells_all = all(byte_ids[byte] >= 0 for byte in UTF8_BYTES)
        table = np.array(merges, "int64").reshape(-1, 3)
        self._in_order = _in_order(table, len(spelled))
        # If a pair has two merges, the later one applies, as in the original.
        ranks = {left * len(spelled) + right: rank for rank, (left, right, _) in enumerate(table)}
        with tf.init_scope():
            self._byte_ids = tf.constant(byte_ids, tf.int32)
            self._merged = tf.constant(np.append(table[:, 2], 0), tf.int32)
            self._spelled = tf.constant(spelled, tf.string)
            self._whole_words = _table(tf, whole_words, tf.string, -1)
            self._ranks = _table(tf, ranks, tf.int64, _NONE)
        self.resources = [self._whole_words, self._ranks]

    def tokenize(self, strings: Tensor) -> Tensor:
        """Encode a string tensor (B,) as an int32 `tf.RaggedTensor` (B, None)."""
        import tensorflow as tf

        strings = tf.convert_to_tensor(strings, tf.string)
        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        parts = self._pre_tokenizer.parts(self.normalize(strings))
        return encode_distinct(parts, self._encode_parts)

    def normalize(self, strings: Tensor) -> Tensor:
        """Normalize a string tensor (B,) of UTF-8."""
        if not self._normalization:
            return strings
        with optional_packages("Unicode normalization in a graph"):
            import tensorflow_text

        return tensorflow_text.normalize_utf8(strings, self._normalization)

    def _encode_parts(self, parts):
        """Encode strings (U,) as int32 ragged (U, None)."""
        words = self._pre_tokenizer.in_graph(parts)
        return words.with_values(self._encode(words.values)).merge_dims(1, 2)

    def tokenize_with_offsets(self, strings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a string tensor (B,), with int32 starts and ends (B, None) in characters.

        Raises:
            InputError: if text is normalized or a byte has no token, which prevents offsets.
        """
        import tensorflow as tf

        if self._normalization or not self._spells_all:
            raise InputError(
                "offsets are not available in a graph for this tokenizer: it "
                + ("normalizes text." if self._normalization else "drops bytes.")
            )
        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        ids = self.tokenize(strings)
        lengths = tf.gather(tf.strings.length(self._spelled), ids.values)
        ends = tf.cumsum(lengths)
        before = tf.cumsum(tf.strings.length(strings), exclusive=True)
        ends -= repeat(before, ids.row_lengths())
        starts, ends = ids.with_values(ends - lengths), ids.with_values(ends)
        return ids, *CharacterOffsets(strings).around(starts, ends)

    def detokenize(self, ids: Tensor) -> Tensor:
        """Decode an int tensor (B, T) or ragged (B, None) to a string tensor (B,)."""
        import tensorflow as tf

        strings = tf.strings.reduce_join(tf.gather(self._spelled, ids), axis=-1)
        return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")

    def _encode(self, words):
        """Encode words (W,) as int32 ragged (W, None)."""
        import tensorflow as tf

        word_ids = self._whole_words.lookup(words)
        is_token, is_other = word_ids >= 0, word_ids < 0
        distinct, index = tf.unique(tf.boolean_mask(words, is_other))
        pieces = tf.gather(self._merge(distinct), index)
        single = tf.RaggedTensor.from_uniform_row_length(tf.boolean_mask(word_ids, is_token), 1)
        return merge_by(is_token, single, pieces)

    def _merge(self, words):
        """Apply the merges to words (U,); return int32 ragged (U, None)."""
        import tensorflow as tf

        num_words = tf.size(words)
        text_bytes = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        ids = tf.gather(self._byte_ids, tf.cast(text_bytes, tf.int32))
        owner = repeat(tf.range(num_words), tf.strings.length(words))
        ids, owner = ids[ids >= 0], owner[ids >= 0]

        def step(ids, owner, done_ids, done_owner):
            left, right = tf.cast(ids[:-1], tf.int64), tf.cast(ids[1:], tf.int64)
            ranks = self._ranks.lookup(left * self._vocabulary_size + right)
            ranks = tf.where(owner[:-1] == owner[1:], ranks, _NONE)
            lowest = tf.math.unsorted_segment_min(ranks, owner[:-1], num_words)
            active = tf.gather(lowest, owner) < _NONE
            merging = (ranks == tf.gather(lowest, owner[:-1])) & active[:-1]
            merging = self._without_overlaps(merging, owner, num_words)
            nothing = tf.zeros(tf.minimum(tf.size(ids), 1), tf.bool)
            merged = tf.gather(self._merged, tf.where(merging, ranks, 0))
            merged = tf.concat([merged, ids[-1:]], axis=0)
            ids = tf.where(tf.concat([merging, nothing], axis=0), merged, ids)
            kept = active & ~tf.concat([nothing, merging], axis=0)
            return (
                ids[kept],
                owner[kept],
                tf.concat([done_ids, ids[~active]], axis=0),
                tf.concat([done_owner, owner[~active]], axis=0),
            )

        empty = tf.zeros([0], tf.int32)
        *_, ids, owner = tf.while_loop(
            lambda ids, *_: tf.size(ids) > 0,
            step,
            (ids, owner, empty, empty),
            shape_invariants=(tf.TensorShape([None]),) * 4,
        )
        order = tf.argsort(owner, stable=True)
        nrows = tf.cast(num_words, tf.int64)
        return tf.RaggedTensor.from_value_rowids(
            tf.gather(ids, order), tf.cast(tf.gather(owner, order), tf.int64), nrows
        )

    def _without_overlaps(self, merging, owner, num_words):
        """Select which occurrences of a word's pair of lowest rank to merge in this step."""
        import tensorflow as tf

        place = tf.range(tf.size(merging))
        if not self._in_order:  # a merge may create a better pair before the next occurrence
            candidate = tf.where(merging, place, _NONE)
            first = tf.math.unsorted_segment_min(candidate, owner[:-1], num_words)
            return merging & (place == tf.gather(first, owner[:-1]))
        # Overlapping occurrences ("aaaa") are adjacent: merge every second one from the left.
        starts = merging & ~tf.concat([tf.zeros_like(merging[:1]), merging[:-1]], axis=0)
        begin = tf.concat([[0], place[starts]], axis=0)
        distance = place - tf.gather(begin, tf.cumsum(tf.cast(starts, tf.int32)))
        return merging & (distance % 2 == 0)


def _in_order(merges, vocabulary_size):
    """Return whether no merge creates a pair of lower rank.

    All occurrences of the lowest rank can then be merged together, because every token is created
    before it is used.
    """
    ranks = np.arange(len(merges))
    made = np.full(vocabulary_size, -1)
    used = np.full(vocabulary_size, len(merges))
    np.maximum.at(made, merges[:, 2], ranks)
    np.minimum.at(used, merges[:, 0], ranks)
    np.minimum.at(used, merges[:, 1], ranks)
    return bool(np.all(made < used))


def _table(tf, entries, key_type, default):
    # A table must not be empty; no word is empty and no key is negative.
    entries = entries or {(b"" if key_type == tf.string else -1): default}
    initializer = tf.lookup.KeyValueTensorInitializer(
        list(entries), list(entries.values()), key_type, tf.int32
    )
    return tf.lookup.StaticHashTable(initializer, default)
