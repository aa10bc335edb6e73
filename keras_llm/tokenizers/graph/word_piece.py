"""WordPiece in TensorFlow's and TensorFlow Text's operations."""

import functools

import numpy as np
import tokenizers

from keras_llm.tokenizers.graph.character_classes import SCALARS, character_class, every_character
from keras_llm.tokenizers.graph.ragged import encode_distinct, merge_by

_PAGE = 256
_ITSELF = -1  # stands for the character in what it becomes
_UNSPELLABLE = "\x00"  # a word that no vocabulary spells


class WordPieceGraph:
    """Encodes and decodes inside a graph.

    What the original library's normaliser and pre-tokeniser make of each character is asked of
    them once and looked up, since TensorFlow's own know another version of Unicode.

    Args:
        normalization: (lowercase, strip_accents, split_chinese), bools.
        vocabulary: list of str.
        unknown: str, the piece of unknown words.
        prefix: str, begins pieces that continue a word.
        max_word_length: int, characters.
        silent: list of int, ids that decode to nothing.
        decoder: the original library's decoder.

    Attributes:
        resources: list of what an exported graph must track.
    """

    def __init__(
        self, normalization, vocabulary, unknown, prefix, max_word_length, silent, decoder
    ):
        import tensorflow as tf
        import tensorflow_text

        self._lowercase, self._strip_accents, _ = normalization
        self._max_word_length = max_word_length
        self._unknown = vocabulary.index(unknown)
        becomes = _becomes(normalization)
        self._removed = f"[{_removed(normalization)}]"
        with tf.init_scope():
            self._pages = tf.constant(becomes.pages)
            self._rows = tf.constant(becomes.rows)
            self._expansions = tf.ragged.constant(becomes.expansions, tf.int32, ragged_rank=1)
            self._speaks = tf.constant(~np.isin(np.arange(len(vocabulary)), silent))
            self._first = tf.constant([decoder.decode([piece]) for piece in vocabulary])
            self._later = tf.constant([decoder.decode(["a", piece])[1:] for piece in vocabulary])
            self._words = tensorflow_text.FastWordpieceTokenizer(
                vocabulary,
                suffix_indicator=prefix,
                max_bytes_per_word=4 * max_word_length,
                token_out_type=tf.int32,
                unknown_token=unknown,
                no_pretokenization=True,
            )
        self.resources = [self._words]

    def tokenize(self, strings):
        """String tensor (B,) -> int32 `tf.RaggedTensor` (B, None)."""
        import tensorflow as tf

        # ASCII's other white space is removed, so it must not split.
        strings = tf.strings.regex_replace(strings, "[\v\f]", "")
        return encode_distinct(tf.strings.split(strings), self._encode)

    def _encode(self, strings):
        """Strings (U,) without white space of ASCII -> int32 ragged (U, None)."""
        import tensorflow as tf

        is_ascii = tf.strings.regex_full_match(strings, r"[\x00-\x7f]*")
        simple, others = (tf.boolean_mask(strings, mask) for mask in (is_ascii, ~is_ascii))
        return merge_by(
            is_ascii,
            self._pieces(self._normalized_ascii(simple)),
            self._pieces(self._normalized(others)),
        )

    def _pieces(self, strings):
        """Strings (U,) of words with spaces between -> int32 ragged (U, None)."""
        import tensorflow as tf

        words = tf.strings.split(strings)
        ids = self._words.tokenize(self._spellable(words.values))
        return words.with_values(ids).merge_dims(1, 2)

    def tokenize_with_offsets(self, strings):
        """The same, and int32 starts and ends (B, None) in characters."""
        import tensorflow as tf

        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        becomes = self._becomes(self._cleaned(strings))
        source = tf.repeat(self._sources(strings), becomes.values.row_lengths())
        becomes = becomes.merge_dims(1, 2)
        words = tf.strings.split(_encoded(becomes))
        # Words lie between spaces: the places of their characters, row by row and in order.
        source = tf.boolean_mask(source, becomes.values != ord(" "))
        flat = words.values
        first = tf.cumsum(tf.strings.length(flat, unit="UTF8_CHAR"), exclusive=True)
        ids, starts, ends = self._words.tokenize_with_offsets(self._spellable(flat))
        lengths = ids.row_lengths()

        def place(offsets):  # in bytes of its word -> in characters of all words
            before = tf.strings.substr(tf.repeat(flat, lengths), tf.zeros_like(offsets), offsets)
            return tf.strings.length(before, unit="UTF8_CHAR") + tf.repeat(first, lengths)

        unknown = ids.values == self._unknown  # a word as a whole, whatever was put for it
        whole = tf.repeat(tf.strings.length(flat), lengths)
        starts, ends = tf.cast(starts.values, tf.int32), tf.cast(ends.values, tf.int32)
        starts = tf.gather(source, place(starts))
        ends = tf.gather(source, place(tf.where(unknown, whole, ends)) - 1) + 1
        both = [words.with_values(ids.with_values(x)).merge_dims(1, 2) for x in (starts, ends)]
        return words.with_values(ids).merge_dims(1, 2), *both

    def _normalized_ascii(self, strings):
        """What `_normalized` makes of ASCII, in a fifth of the time."""
        import tensorflow as tf

        strings = tf.strings.regex_replace(strings, r"[\x00-\x1f\x7f]", "")
        if self._lowercase:
            strings = tf.strings.lower(strings)
        return tf.strings.regex_replace(strings, r"[!-/:-@\[-`{-~]", r" \0 ")

    def detokenize(self, ids):
        """Int tensor (B, T) or ragged (B, None) -> string tensor (B,)."""
        import tensorflow as tf

        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        ids = tf.ragged.boolean_mask(ids, tf.gather(self._speaks, ids))
        begins = tf.ragged.range(ids.row_lengths()).values == 0
        first, later = tf.gather(self._first, ids.values), tf.gather(self._later, ids.values)
        return tf.strings.reduce_join(ids.with_values(tf.where(begins, first, later)), axis=-1)

    def _normalized(self, strings):
        """Strings (B,) -> strings (B,) of words with spaces between."""
        return _encoded(self._becomes(self._cleaned(strings)))

    def _cleaned(self, strings):
        """Strings (B,) without the characters that count for nothing, in one order of marks."""
        import tensorflow as tf
        import tensorflow_text

        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        strings = tf.strings.regex_replace(strings, self._removed, "")
        if self._strip_accents:
            # For the order of marks alone, which depends on their neighbours.
            strings = tensorflow_text.normalize_utf8(strings, "NFD")
        return strings

    def _becomes(self, strings):
        """Cleaned strings (B,) -> what each character becomes, int32 ragged (B, None, None)."""
        import tensorflow as tf

        characters = tf.strings.unicode_decode(strings, "UTF-8")
        flat = characters.values
        row = tf.gather(self._rows, tf.gather(self._pages, flat // _PAGE) * _PAGE + flat % _PAGE)
        becomes = tf.gather(self._expansions, row)
        itself = tf.repeat(flat, becomes.row_lengths())
        becomes = becomes.with_values(tf.where(becomes.values == _ITSELF, itself, becomes.values))
        return characters.with_values(becomes)

    def _sources(self, strings):
        """Of each character of the cleaned strings the place in its string before, int32 (N,).
        Cleaned one by one they are as many; only marks change places among themselves."""
        import tensorflow as tf

        single = tf.strings.unicode_split(strings, "UTF-8")
        counts = tf.strings.length(self._cleaned(single.values), unit="UTF8_CHAR")
        return tf.repeat(tf.ragged.range(tf.cast(single.row_lengths(), tf.int32)).values, counts)

    def _spellable(self, words):
        """Words (W,), those that are too long as one that is unknown."""
        import tensorflow as tf

        too_long = tf.strings.length(words, unit="UTF8_CHAR") > self._max_word_length
        return tf.where(too_long, _UNSPELLABLE, words)


def _encoded(characters):
    """Int32 ragged (B, None) or (B, None, None) -> strings (B,)."""
    import tensorflow as tf

    if characters.ragged_rank > 1:
        characters = characters.merge_dims(1, 2)
    return tf.strings.unicode_encode(characters, "UTF-8")


class _Becomes:
    """What every character becomes, in pages of which many are the same.

    The character c becomes the code points `expansions[rows[pages[c // 256] * 256 + c % 256]]`.
    """

    def __init__(self, expansions):
        """expansions: dict scalar -> tuple of code points; others stay themselves."""
        distinct = {(_ITSELF,): 0}
        rows = np.zeros(0x110000, "int32")
        for scalar, expansion in expansions.items():
            rows[scalar] = distinct.setdefault(expansion, len(distinct))
        pages, self.pages = np.unique(rows.reshape(-1, _PAGE), axis=0, return_inverse=True)
        self.pages = self.pages.astype("int32").reshape(-1)
        self.rows = pages.reshape(-1)
        self.expansions = [list(expansion) for expansion in distinct]


@functools.cache
def _becomes(normalization):
    lowercase, strip_accents, split_chinese = normalization
    normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=split_chinese
    )
    split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    expansions = {}
    for character in _concerned(normalizer, split):
        words = [word for word, _ in split(normalizer.normalize_str(character))]
        # A word that is cut off on both sides makes room for its neighbours.
        apart = len(split(normalizer.normalize_str(f"a{character}a"))) > 1
        text = " ".join(words)
        if apart:
            text = f" {text} " if text else " "
        expansion = tuple(_ITSELF if c == character else ord(c) for c in text)
        if expansion != (_ITSELF,):
            expansions[ord(character)] = expansion
    return _Becomes(expansions)


@functools.cache
def _removed(normalization):
    """The class of the characters that cleaning removes, whatever their neighbours."""
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    return character_class(
        index for index, scalar in enumerate(SCALARS) if not normalizer.normalize_str(chr(scalar))
    )


def _concerned(normalizer, split):
    """All characters but those of blocks that the original leaves as they are."""
    characters = every_character()
    for begin in range(0, len(characters), _PAGE):
        block = characters[begin : begin + _PAGE]
        if normalizer.normalize_str(block) != block or len(split(block)) > 1:
            yield from block
