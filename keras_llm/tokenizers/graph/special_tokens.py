"""Encode texts with special tokens in a graph."""

import re
from collections.abc import Callable, Sequence

from keras_llm.tokenizers.graph import character_classes
from keras_llm.tokenizers.graph.ragged import merge_by, repeat, row_ids, select
from keras_llm.tokenizers.special_tokens import SpecialToken
from keras_llm.types import Tensor

_CUT = b"\xff"  # never occurs in UTF-8
# The characters that \w of the original library's other regular expressions matches.
_WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}]"


def encode_with_special(
    strings: Tensor,
    tokens: Sequence[SpecialToken],
    encode: Callable[[Tensor, Tensor], Tensor],
    normalize: Callable[[Tensor], Tensor],
) -> Tensor:
    """Encode texts that contain special tokens.

    Args:
        strings: string tensor (B,) of UTF-8.
        tokens: list of `SpecialToken`s. If two match at the same place, the longer one applies.
        encode: function from normalized strings (U,), which are the texts between special tokens,
            and bool (U,), whether each is the beginning of its text, to an int32
            `tf.RaggedTensor` (U, None).
        normalize: function that normalizes strings (U,).

    Returns:
        Int32 `tf.RaggedTensor` (B, None).
    """
    import tensorflow as tf

    plain = [token for token in tokens if not token.normalized]
    parts, ids = _split(strings, plain)
    is_first = parts.with_values(_starts_row(parts))
    parts = parts.with_values(tf.where(ids < 0, normalize(parts.values), parts.values))
    within = [token for token in tokens if token.normalized]
    if within:
        with tf.init_scope():
            contents = normalize(tf.constant([token.content for token in within])).numpy()
        within = [
            token._replace(content=content.decode())
            for token, content in zip(within, contents, strict=True)
        ]
        finer, finer_ids = _split(parts.values, within, whole=ids >= 0)
        ids = tf.where(finer_ids < 0, repeat(ids, finer.row_lengths()), finer_ids)
        starts = repeat(is_first.values, finer.row_lengths()) & _starts_row(finer)
        parts = parts.with_values(finer).merge_dims(1, 2)
        is_first = parts.with_values(starts)
    is_special = ids >= 0
    single = tf.RaggedTensor.from_uniform_row_length(tf.boolean_mask(ids, is_special), 1)
    texts = tf.boolean_mask(parts.values, ~is_special)
    others = encode(texts, tf.boolean_mask(is_first.values, ~is_special))
    return parts.with_values(merge_by(is_special, single, others)).merge_dims(1, 2)


def _split(strings, tokens, whole=None):
    """Split strings (B,) at special tokens.

    Args:
        whole: bool (B,), strings that are not split, or None.

    Returns:
        Non-empty parts, string ragged (B, None), and the flat ids of the special tokens, int32,
        -1 for texts.
    """
    import tensorflow as tf

    if not tokens:
        parts = tf.RaggedTensor.from_uniform_row_length(strings, 1)
        parts = select(parts, parts.values != "")
        return parts, tf.fill(tf.shape(parts.values), -1)
    longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    pattern = "|".join(re.escape(token.content) for token in longest_first)
    cut = tf.strings.regex_replace(strings, f"({pattern})", _CUT + rb"\1" + _CUT)
    parts = tf.strings.split(cut if whole is None else tf.where(whole, strings, cut), _CUT)
    parts = select(parts, parts.values != "")
    matches = tf.expand_dims(parts.values, 1) == tf.constant([t.content for t in longest_first])
    found = tf.reduce_any(matches, axis=1)
    if whole is not None:
        found &= ~repeat(whole, parts.row_lengths())
    place = tf.argmax(tf.cast(matches, tf.int32), axis=1, output_type=tf.int32)

    def flags(name):
        values = tf.constant([getattr(token, name) for token in longest_first])
        return found & tf.gather(values, place)

    if any(token.single_word for token in longest_first):
        found &= ~(flags("single_word") & _touches_word(parts))
        parts, place, found = _joined(parts, place, found)
    if any(token.lstrip for token in longest_first):
        parts = _stripped(parts, found, _shifted(flags("lstrip"), parts, -1), "[{}]+$")
    if any(token.rstrip for token in longest_first):
        parts = _stripped(parts, found, _shifted(flags("rstrip"), parts, 1), "^[{}]+")
    ids = tf.gather(tf.constant([token.token_id for token in longest_first], tf.int32), place)
    kept = parts.values != ""
    return select(parts, kept), tf.boolean_mask(tf.where(found, ids, -1), kept)


def _starts_row(parts):
    """Return which values of a ragged tensor are the first of their row, bool (N,)."""
    import tensorflow as tf

    place = tf.range(tf.size(parts.values, tf.int64))
    return place == repeat(parts.row_starts(), parts.row_lengths())


def _shifted(mask, parts, by):
    """Return the mask of the previous (1) or next (-1) part of the same row, bool (N,)."""
    import tensorflow as tf

    starts = _starts_row(parts)
    if by > 0:
        return tf.concat([[False], mask], axis=0)[: tf.size(mask)] & ~starts
    return tf.concat([mask & ~starts, [False]], axis=0)[1:]


def _touches_word(parts):
    """Return which parts are next to a letter, number or underscore, bool (N,)."""
    import tensorflow as tf

    word = character_classes.matching(_WORD) + r"\x{e0100}-\x{e01ef}"  # variation selectors
    begins = tf.strings.regex_full_match(parts.values, f"(?s)[{word}].*")
    ends = tf.strings.regex_full_match(parts.values, f"(?s).*[{word}]")
    return _shifted(ends, parts, 1) | _shifted(begins, parts, -1)


def _joined(parts, place, is_special):
    """Join adjacent parts that are no special tokens."""
    import tensorflow as tf

    begins = is_special | _shifted(is_special, parts, 1) | _starts_row(parts)
    runs = tf.cumsum(tf.cast(begins, tf.int64)) - 1
    joined = tf.strings.reduce_join(tf.RaggedTensor.from_value_rowids(parts.values, runs), axis=1)
    rows = tf.boolean_mask(row_ids(parts.row_lengths()), begins)
    parts = tf.RaggedTensor.from_value_rowids(joined, rows, parts.nrows())
    return parts, tf.boolean_mask(place, begins), tf.boolean_mask(is_special, begins)


def _stripped(parts, is_special, mask, pattern):
    """Remove white space from texts where the mask is True."""
    import tensorflow as tf

    pattern = pattern.format(character_classes.matching(r"\s"))
    values = tf.strings.regex_replace(parts.values, pattern, "")
    return parts.with_values(tf.where(mask & ~is_special, values, parts.values))
