"""Convert character classes of the Rust `tokenizers` library to classes of TensorFlow's RE2.

The two use different versions of Unicode: a letter in one may be unassigned in the other. So the
members of each class are determined with the Rust library and written as ranges.
"""

import functools
from collections.abc import Iterable

from tokenizers import Regex, pre_tokenizers

# All Unicode scalar values (code points except surrogates) in order.
SCALARS = (*range(0xD800), *range(0xE000, 0x110000))


@functools.cache
def every_character() -> str:
    """Return a str of all Unicode scalar values in order."""
    return "".join(map(chr, SCALARS))


@functools.cache
def matching(pattern: str) -> str:
    """Return the characters that a pattern matches, as the inside of an RE2 character class.

    Args:
        pattern: str, a regular expression of the Rust library for one character, such as
            r"\\p{L}". It must not match U+0000.
    """
    return _members(pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "isolated"))


@functools.cache
def digits() -> str:
    """Return the characters that the library's `Digits` splits at, for an RE2 character class."""
    return _members(pre_tokenizers.Digits(individual_digits=False))


def character_class(indices: Iterable[int]) -> str:
    """Return the inside of an RE2 character class for ascending indices into `SCALARS`."""
    bounds: list[list[int]] = []
    for index in indices:
        if bounds and bounds[-1][1] == index:
            bounds[-1][1] += 1
        else:
            bounds.append([index, index + 1])
    return _format_ranges(bounds)


def _members(split):
    # No letter, number or white space lies beyond plane 3. Pieces of non-members and members
    # alternate, and the first character is not a member.
    pieces = split.pre_tokenize_str(every_character()[: SCALARS.index(0x40000)])[1::2]
    return _format_ranges(bounds for _, bounds in pieces)


def _format_ranges(bounds):
    return "".join(rf"\x{{{SCALARS[a]:x}}}-\x{{{SCALARS[b - 1]:x}}}" for a, b in bounds)
