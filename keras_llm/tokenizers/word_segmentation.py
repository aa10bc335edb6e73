"""Segment texts into words by their offsets, in Python and in a graph with the same result.

A word is a run of characters that are neither white space nor punctuation, or one punctuation mark.
As in BERT, punctuation is all ASCII symbols and the Unicode categories P.
"""

import functools
import unicodedata

import numpy as np

from keras_llm.types import Tensor

_PART, _SPACE, _ALONE = 0, 1, 2
_PAGE = 256


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the words of a str: a list of pairs (start, end), in characters."""
    pages, rows = _classes()
    characters = np.array([ord(character) for character in text], "int32")
    classes = rows[pages[characters // _PAGE] * _PAGE + characters % _PAGE]
    before = np.concatenate([[_SPACE], classes[:-1]])
    after = np.concatenate([classes[1:], [_SPACE]])
    starts = np.flatnonzero((classes == _ALONE) | ((classes == _PART) & (before != _PART)))
    ends = np.flatnonzero((classes == _ALONE) | ((classes == _PART) & (after != _PART))) + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def word_spans_in_graph(strings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the words of a string tensor (B,) of UTF-8.

    The starts and ends are int32 `tf.RaggedTensor`s (B, None), in characters.
    """
    import tensorflow as tf

    pages, rows = map(tf.constant, _classes())
    characters = tf.strings.unicode_decode(strings, "UTF-8")
    flat = characters.values
    classes = tf.gather(rows, tf.gather(pages, flat // _PAGE) * _PAGE + flat % _PAGE)
    counts = characters.row_lengths()
    place = tf.ragged.range(tf.cast(counts, tf.int32))
    is_first = place.values == 0
    is_last = tf.concat([is_first[1:], tf.ones_like(is_first[:1])], axis=0)
    space = tf.fill([tf.minimum(tf.size(flat), 1)], _SPACE)
    before = tf.where(is_first, _SPACE, tf.concat([space, classes[:-1]], axis=0))
    after = tf.where(is_last, _SPACE, tf.concat([classes[1:], space], axis=0))
    begins = (classes == _ALONE) | ((classes == _PART) & (before != _PART))
    ends = (classes == _ALONE) | ((classes == _PART) & (after != _PART))
    starts = tf.ragged.boolean_mask(place, characters.with_values(begins))
    return starts, tf.ragged.boolean_mask(place, characters.with_values(ends)) + 1


@functools.cache
def _classes():
    """Compute tables in which character c has the class `rows[pages[c // 256] * 256 + c % 256]`."""
    classes = np.array([_class_of(chr(scalar)) for scalar in range(0x110000)], "int32")
    rows, pages = np.unique(classes.reshape(-1, _PAGE), axis=0, return_inverse=True)
    return pages.astype("int32").reshape(-1), rows.reshape(-1)


def _class_of(character):
    if character.isspace():
        return _SPACE
    is_symbol = character.isascii() and character.isprintable() and not character.isalnum()
    return _ALONE if is_symbol or unicodedata.category(character)[0] == "P" else _PART
