"""Escape the character U+2581, which SentencePiece writes for a space and decodes as a space.

In escaped text, every ESCAPE is followed by "a" (for an ESCAPE of the text) or "b" (for a U+2581).
"""

import numpy as np

from keras_llm.types import Tensor

ESCAPE = "\ue000"
ESCAPES = ((ESCAPE, ESCAPE + "a"), ("\u2581", ESCAPE + "b"))


def escape(text: str) -> str:
    """Escape a str."""
    for character, escaped in ESCAPES:
        text = text.replace(character, escaped)
    return text


def unescape(text: str) -> str:
    """Revert `escape`."""
    for character, escaped in reversed(ESCAPES):
        text = text.replace(escaped, character)
    return text


def escape_in_graph(strings: Tensor) -> Tensor:
    """Escape strings (B,)."""
    import tensorflow as tf

    for character, escaped in ESCAPES:
        strings = tf.strings.regex_replace(strings, character, escaped)
    return strings


def unescape_in_graph(strings: Tensor) -> Tensor:
    """Revert `escape_in_graph`."""
    import tensorflow as tf

    for character, escaped in reversed(ESCAPES):
        strings = tf.strings.regex_replace(strings, escaped, character)
    return strings


def character_counts(escaped: str, has_escapes: bool) -> list[int]:
    """Count the characters of the original text that start before each byte of the escaped text.

    Args:
        escaped: str.
        has_escapes: bool. Whether the text was escaped.

    Returns:
        A list of ints; the last entry is for the end of the text.
    """
    begins = np.frombuffer(escaped.encode(), "uint8") & 0xC0 != 0x80
    if has_escapes and ESCAPE in escaped:
        # Of the two characters of an escape, the second is an "a" or a "b" after ESCAPE.
        characters = np.array([ord(character) for character in escaped])
        second = np.concatenate([[False], characters[:-1] == ord(ESCAPE)])
        begins[begins] = ~second
    return [0, *np.cumsum(begins).tolist()]


def is_second(flat: Tensor) -> Tensor:
    """Return whether each byte, int32 (N,), is the second character of an escape, bool (N,)."""
    import tensorflow as tf

    padded = tf.concat([[0, 0, 0], flat], axis=0)
    before = [padded[i : tf.size(padded) - 3 + i] for i in range(3)]
    matches = [b == byte for b, byte in zip(before, ESCAPE.encode(), strict=True)]
    return matches[0] & matches[1] & matches[2]
