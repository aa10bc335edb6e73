"""Classes of characters, as the Rust `tokenizers` library sees them, for TensorFlow's RE2.

The two know different versions of Unicode: what one calls a letter may be unassigned to the
other. So every class is asked of the library once and spelled out in ranges.
"""

import functools

from tokenizers import Regex, pre_tokenizers

# Every Unicode scalar value, surrogates left out, in order.
SCALARS = (*range(0xD800), *range(0xE000, 0x110000))


@functools.cache
def every_character():
    """A str of all Unicode scalar values in order."""
    return "".join(map(chr, SCALARS))


@functools.cache
def matching(pattern):
    """What a pattern of one character matches, as the inside of an RE2 character class.

    Args:
        pattern: str, a regular expression of the Rust library that U+0000 does not match, such
            as r"\\p{L}".
    """
    return _members(pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "isolated"))


@functools.cache
def digits():
    """What the library's `Digits` splits at, as the inside of an RE2 character class."""
    return _members(pre_tokenizers.Digits(individual_digits=False))


def character_class(indices):
    """Ascending indices into `SCALARS` -> the inside of an RE2 character class."""
    bounds = []
    for index in indices:
        if bounds and bounds[-1][1] == index:
            bounds[-1][1] += 1
        else:
            bounds.append([index, index + 1])
    return _spelled(bounds)


def _members(split):
    # Beyond plane 3 there are neither letters nor numbers nor white space. Pieces of non-members
    # and members alternate, and the first character is no member.
    pieces = split.pre_tokenize_str(every_character()[: SCALARS.index(0x40000)])[1::2]
    return _spelled(bounds for _, bounds in pieces)


def _spelled(bounds):
    return "".join(rf"\x{{{SCALARS[a]:x}}}-\x{{{SCALARS[b - 1]:x}}}" for a, b in bounds)
