"""Byte-pair encoding in TensorFlow's core operations."""

import numpy as np

from keras_llm.errors import InputError
from keras_llm.tokenizers.graph.ragged import encode_distinct, merge_by
from keras_llm.tokenizers.offsets import CharacterOffsets

# The bytes that UTF-8 has a use for.
UTF8_BYTES = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]
_NONE = np.iinfo(np.int32).max  # no merge


class BytePairGraph:
    """Encodes and decodes inside a graph.

    Words that are one token are looked up. The others, each once, are spelled in bytes in one
    flat vector, and each turn of a loop merges in every word its pair of lowest rank, until no
    word has a pair.

    Args:
        pre_tokenizer: a `PreTokenizer`.
        normalization: "NFC" or None.
        byte_ids: 256 ints, -1 for a byte to leave out.
        merges: list of (left id, right id, merged id), the first learnt first.
        whole_words: dict bytes -> id, words that are one token.
        spelled: list of bytes, what each id decodes to.

    Attributes:
        resources: list of the lookup tables.
    """

    def __init__(self, pre_tokenizer, normalization, byte_ids, merges, whole_words, spelled):
        import tensorflow as tf

        self._pre_tokenizer = pre_tokenizer
        self._normalization = normalization
        self._vocabulary_size = len(spelled)
        self._spells_all = all(byte_ids[byte] >= 0 for byte in UTF8_BYTES)
        merges = np.array(merges, "int64").reshape(-1, 3)
        self._in_order = _in_order(merges, len(spelled))
        # Of two merges of one pair the later counts, as in the original.
        ranks = {left * len(spelled) + right: rank for rank, (left, right, _) in enumerate(merges)}
        with tf.init_scope():
            self._byte_ids = tf.constant(byte_ids, tf.int32)
            self._merged = tf.constant(np.append(merges[:, 2], 0), tf.int32)
            self._spelled = tf.constant(spelled, tf.string)
            self._whole_words = _table(tf, whole_words, tf.string, -1)
            self._ranks = _table(tf, ranks, tf.int64, _NONE)
        self.resources = [self._whole_words, self._ranks]

    def tokenize(self, strings):
        """String tensor (B,) -> int32 `tf.RaggedTensor` (B, None)."""
        import tensorflow as tf

        strings = tf.convert_to_tensor(strings, tf.string)
        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        if self._normalization:
            import tensorflow_text

            strings = tensorflow_text.normalize_utf8(strings, self._normalization)
        return encode_distinct(self._pre_tokenizer.parts(strings), self._encode_parts)

    def _encode_parts(self, parts):
        """String (U,) -> int32 ragged (U, None)."""
        words = self._pre_tokenizer.in_graph(parts)
        return words.with_values(self._encode(words.values)).merge_dims(1, 2)

    def tokenize_with_offsets(self, strings):
        """The same, and int32 starts and ends (B, None) in characters.

        Raises:
            InputError: if text is normalised, or a byte has no token: places are then lost.
        """
        import tensorflow as tf

        if self._normalization or not self._spells_all:
            raise InputError(
                "this tokenizer does not tell in a graph where tokens stand: it "
                + ("normalises text." if self._normalization else "leaves bytes out.")
            )
        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        ids = self.tokenize(strings)
        lengths = tf.gather(tf.strings.length(self._spelled), ids.values)
        ends = tf.cumsum(lengths)
        before = tf.cumsum(tf.strings.length(strings), exclusive=True)
        ends -= tf.repeat(before, ids.row_lengths())
        starts, ends = ids.with_values(ends - lengths), ids.with_values(ends)
        return ids, *CharacterOffsets(strings).around(starts, ends)

    def detokenize(self, ids):
        """Int tensor (B, T) or ragged (B, None) -> string tensor (B,)."""
        import tensorflow as tf

        strings = tf.strings.reduce_join(tf.gather(self._spelled, ids), axis=-1)
        return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")

    def _encode(self, words):
        """String (W,) -> int32 ragged (W, None)."""
        import tensorflow as tf

        found = self._whole_words.lookup(words)
        known, others = found >= 0, found < 0
        different, index = tf.unique(tf.boolean_mask(words, others))
        pieces = tf.gather(self._merge(different), index)
        single = tf.RaggedTensor.from_uniform_row_length(tf.boolean_mask(found, known), 1)
        return merge_by(known, single, pieces)

    def _merge(self, words):
        """String (U,) -> int32 ragged (U, None)."""
        import tensorflow as tf

        num_words = tf.size(words)
        spelling = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        ids = tf.gather(self._byte_ids, tf.cast(spelling, tf.int32))
        owner = tf.repeat(tf.range(num_words), tf.strings.length(words))
        ids, owner = ids[ids >= 0], owner[ids >= 0]

        def turn(ids, owner, done_ids, done_owner):
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

        nowhere = tf.zeros([0], tf.int32)
        *_, ids, owner = tf.while_loop(
            lambda ids, *_: tf.size(ids) > 0,
            turn,
            (ids, owner, nowhere, nowhere),
            shape_invariants=(tf.TensorShape([None]),) * 4,
        )
        order = tf.argsort(owner, stable=True)
        nrows = tf.cast(num_words, tf.int64)
        return tf.RaggedTensor.from_value_rowids(
            tf.gather(ids, order), tf.cast(tf.gather(owner, order), tf.int64), nrows
        )

    def _without_overlaps(self, merging, owner, num_words):
        """Of the places of a word's pair of lowest rank, those to merge in this turn."""
        import tensorflow as tf

        place = tf.range(tf.size(merging))
        if not self._in_order:  # a merge may make a pair that comes before its next place
            candidate = tf.where(merging, place, _NONE)
            first = tf.math.unsorted_segment_min(candidate, owner[:-1], num_words)
            return merging & (place == tf.gather(first, owner[:-1]))
        # Overlapping places ("aaaa") follow each other: every second one from the left.
        starts = merging & ~tf.concat([tf.zeros_like(merging[:1]), merging[:-1]], axis=0)
        begin = tf.concat([[0], place[starts]], axis=0)
        distance = place - tf.gather(begin, tf.cumsum(tf.cast(starts, tf.int32)))
        return merging & (distance % 2 == 0)


def _in_order(merges, vocabulary_size):
    """Whether no merge makes a pair of lower rank, so that all places of the lowest rank may be
    merged at once: every token is made before it is used."""
    ranks = np.arange(len(merges))
    made = np.full(vocabulary_size, -1)
    used = np.full(vocabulary_size, len(merges))
    np.maximum.at(made, merges[:, 2], ranks)
    np.minimum.at(used, merges[:, 0], ranks)
    np.minimum.at(used, merges[:, 1], ranks)
    return bool(np.all(made < used))


def _table(tf, entries, key_type, default):
    # A table may not be empty; no word is empty and no key is negative.
    entries = entries or {(b"" if key_type == tf.string else -1): default}
    initializer = tf.lookup.KeyValueTensorInitializer(
        list(entries), list(entries.values()), key_type, tf.int32
    )
    return tf.lookup.StaticHashTable(initializer, default)
