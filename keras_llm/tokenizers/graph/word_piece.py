"""Run WordPiece with the operations of TensorFlow and TensorFlow Text."""

import functools

import numpy as np
import tokenizers

from keras_llm.errors import optional_packages
from keras_llm.tokenizers.graph.character_classes import SCALARS, character_class, every_character
from keras_llm.tokenizers.graph.ragged import encode_distinct, merge_by, repeat, select
from keras_llm.types import Tensor

_PAGE = 256
_ITSELF = -1  # stands for the character itself in its expansion
_UNSPELLABLE = "\x00"  # a word outside every vocabulary
_REMOVED = "\ue000"  # a character that normalization removes


class WordPieceGraph:
    """WordPiece encoding and decoding inside a graph.

    The result of the original library's normalizer and pre-tokenizer for each character is
    precomputed and looked up, because TensorFlow uses another version of Unicode.

    Args:
        normalization: (lowercase, strip_accents, split_chinese), bools.
        vocabulary: list of str.
        unknown: str, the piece for unknown words.
        prefix: str, the prefix of pieces that continue a word.
        max_word_length: int, characters.
        num_pieces: int. Tokens from this id on are no words of a text.
        silent: list of int, ids that decode to an empty string.
        decoder: the original library's decoder.

    Attributes:
        resources: list of the objects that an exported graph must track.
    """

    def __init__(
        self,
        normalization: tuple[bool, bool, bool],
        vocabulary: list[str],
        unknown: str,
        prefix: str,
        max_word_length: int,
        num_pieces: int,
        silent: list[int],
        decoder: tokenizers.decoders.Decoder,
    ) -> None:
        import tensorflow as tf

        with optional_packages("a WordPiece graph"):
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
            others = [f"{_REMOVED}{index}" for index in range(num_pieces, len(vocabulary))]
            self._words = tensorflow_text.FastWordpieceTokenizer(
                [*vocabulary[:num_pieces], *others],
                suffix_indicator=prefix,
                max_bytes_per_word=4 * max_word_length,
                token_out_type=tf.int32,
                unknown_token=unknown,
                no_pretokenization=True,
            )
        self.resources = [self._words]

    def tokenize(self, strings: Tensor) -> Tensor:
        """Encode a string tensor (B,) as an int32 `tf.RaggedTensor` (B, None)."""
        import tensorflow as tf

        # Other ASCII white space is removed by normalization, so it must not split words.
        strings = tf.strings.regex_replace(strings, "[\v\f]", "")
        return encode_distinct(tf.strings.split(strings), self._encode)

    def _encode(self, strings):
        """Encode strings (U,) without ASCII white space as int32 ragged (U, None)."""
        import tensorflow as tf

        is_ascii = tf.strings.regex_full_match(strings, r"[\x00-\x7f]*")
        simple, others = (tf.boolean_mask(strings, mask) for mask in (is_ascii, ~is_ascii))
        return merge_by(
            is_ascii,
            self._pieces(self._normalized_ascii(simple)),
            self._pieces(self._normalized(others)),
        )

    def _pieces(self, strings):
        """Encode strings (U,) of space-separated words as int32 ragged (U, None)."""
        import tensorflow as tf

        words = tf.strings.split(strings)
        ids = self._words.tokenize(self._spellable(words.values))
        return words.with_values(ids).merge_dims(1, 2)

    def tokenize_with_offsets(self, strings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a string tensor (B,), with int32 starts and ends (B, None) in characters."""
        import tensorflow as tf

        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        becomes = self._becomes(self._cleaned(strings))
        source = repeat(self._sources(strings), becomes.values.row_lengths())
        becomes = becomes.merge_dims(1, 2)
        words = tf.strings.split(_encoded(becomes))
        # Without the spaces, these are the positions of the characters of all words in order.
        source = tf.boolean_mask(source, becomes.values != ord(" "))
        flat = words.values
        first = tf.cumsum(tf.strings.length(flat, unit="UTF8_CHAR"), exclusive=True)
        ids, starts, ends = self._words.tokenize_with_offsets(self._spellable(flat))
        lengths = ids.row_lengths()

        def place(offsets):  # byte offset in a word -> character offset in all words
            before = tf.strings.substr(repeat(flat, lengths), tf.zeros_like(offsets), offsets)
            return tf.strings.length(before, unit="UTF8_CHAR") + repeat(first, lengths)

        unknown = ids.values == self._unknown  # always spans a whole word
        whole = repeat(tf.strings.length(flat), lengths)
        starts, ends = tf.cast(starts.values, tf.int32), tf.cast(ends.values, tf.int32)
        starts = tf.gather(source, place(starts))
        ends = tf.gather(source, place(tf.where(unknown, whole, ends)) - 1) + 1
        both = [words.with_values(ids.with_values(x)).merge_dims(1, 2) for x in (starts, ends)]
        return words.with_values(ids).merge_dims(1, 2), *both

    def _normalized_ascii(self, strings):
        """Normalize ASCII strings as `_normalized` does, five times as fast."""
        import tensorflow as tf

        strings = tf.strings.regex_replace(strings, r"[\x00-\x1f\x7f]", "")
        if self._lowercase:
            strings = tf.strings.lower(strings)
        return tf.strings.regex_replace(strings, r"[!-/:-@\[-`{-~]", r" \0 ")

    def detokenize(self, ids: Tensor) -> Tensor:
        """Decode an int tensor (B, T) or ragged (B, None) to a string tensor (B,)."""
        import tensorflow as tf

        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        ids = select(ids, tf.gather(self._speaks, ids.values))
        begins = tf.ragged.range(ids.row_lengths()).values == 0
        first, later = tf.gather(self._first, ids.values), tf.gather(self._later, ids.values)
        return tf.strings.reduce_join(ids.with_values(tf.where(begins, first, later)), axis=-1)

    def _normalized(self, strings):
        """Normalize strings (B,) to space-separated words."""
        return _encoded(self._becomes(self._cleaned(strings)))

    def _cleaned(self, strings):
        """Remove ignored characters from strings (B,) and order combining marks."""
        import tensorflow as tf

        with optional_packages("a WordPiece graph"):
            import tensorflow_text

        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        strings = tf.strings.regex_replace(strings, self._removed, "")
        if self._strip_accents:
            # Only for the order of combining marks, which depends on adjacent characters.
            strings = tensorflow_text.normalize_utf8(strings, "NFD")
        return strings

    def _becomes(self, strings):
        """Expand each character of cleaned strings (B,), int32 ragged (B, None, None)."""
        import tensorflow as tf

        characters = tf.strings.unicode_decode(strings, "UTF-8")
        flat = characters.values
        row = tf.gather(self._rows, tf.gather(self._pages, flat // _PAGE) * _PAGE + flat % _PAGE)
        becomes = tf.gather(self._expansions, row)
        itself = repeat(flat, becomes.row_lengths())
        becomes = becomes.with_values(tf.where(becomes.values == _ITSELF, itself, becomes.values))
        return characters.with_values(becomes)

    def _sources(self, strings):
        """Map each character of the cleaned strings to its position in the input, int32 (N,).

        Cleaning characters one by one yields the same number; it only changes the order of marks.
        """
        import tensorflow as tf

        single = tf.strings.unicode_split(strings, "UTF-8")
        counts = tf.strings.length(self._cleaned(single.values), unit="UTF8_CHAR")
        return repeat(tf.ragged.range(tf.cast(single.row_lengths(), tf.int32)).values, counts)

    def _spellable(self, words):
        """Replace words (W,) that are too long by an unknown word."""
        import tensorflow as tf

        too_long = tf.strings.length(words, unit="UTF8_CHAR") > self._max_word_length
        return tf.where(too_long, _UNSPELLABLE, words)


def _encoded(characters):
    """Encode int32 ragged (B, None) or (B, None, None) code points as strings (B,)."""
    import tensorflow as tf

    if characters.ragged_rank > 1:
        characters = characters.merge_dims(1, 2)
    return tf.strings.unicode_encode(characters, "UTF-8")


class _Becomes:
    """The expansion of every character, with identical pages stored once.

    The character c becomes the code points `expansions[rows[pages[c // 256] * 256 + c % 256]]`.
    """

    def __init__(self, expansions):
        """Build the tables from `expansions`: dict scalar -> code points; others are unchanged."""
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
        # A character that splits off on both sides also separates its neighbors.
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
    """Return the class of characters that cleaning always removes."""
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    return character_class(
        index for index, scalar in enumerate(SCALARS) if not normalizer.normalize_str(chr(scalar))
    )


def _concerned(normalizer, split):
    """Yield the characters of all blocks that the original library changes or splits."""
    characters = every_character()
    for begin in range(0, len(characters), _PAGE):
        block = characters[begin : begin + _PAGE]
        if normalizer.normalize_str(block) != block or len(split(block)) > 1:
            yield from block
