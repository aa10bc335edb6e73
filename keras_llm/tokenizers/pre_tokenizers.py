"""Split texts into words for byte-level BPE, in Python and in a graph.

The original patterns use look-ahead (`\\s+(?!\\S)`: a run of white space without its last character
if a word follows), which RE2, the regular expression engine of TensorFlow, does not support. In a
graph, a byte that never occurs in UTF-8 is therefore inserted where a run must be split, before the
words are matched.
"""

import dataclasses
import functools

import tokenizers

from keras_llm.tokenizers.graph import character_classes, ragged
from keras_llm.types import Tensor

CUT = b"\xff"


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """A rule that splits texts into words.

    Attributes:
        pattern: str, the original regular expression, whose matches are the words.
        words: str, the equivalent for RE2 on texts with cuts. `<L>`, `<N>`, `<S>`, `<B>` and
            `<D>` stand for the insides of the classes of letters, numbers, white space, white
            space without line breaks, and digits.
        cut: str for RE2 with two groups, between which a cut is inserted.
        split_digits: bool. Whether every digit becomes a separate word before `pattern` applies.
    """

    pattern: str
    words: str
    cut: str
    split_digits: bool = False

    def in_rust(self) -> tokenizers.pre_tokenizers.PreTokenizer:
        """Return the `tokenizers.pre_tokenizers.PreTokenizer` that yields byte-level words."""
        rust = tokenizers.pre_tokenizers
        digits = [rust.Digits(individual_digits=True)] if self.split_digits else []
        return rust.Sequence(
            [
                *digits,
                rust.Split(tokenizers.Regex(self.pattern), "isolated"),
                rust.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    @staticmethod
    def parts(strings: Tensor) -> Tensor:
        """Split where any of these patterns splits: before a space after a visible character.

        Maps strings (B,) to a string `tf.RaggedTensor` (B, None) of longer parts, many of which
        are equal.
        """
        import tensorflow as tf

        strings = tf.strings.regex_replace(strings, "([!-~])( )", rb"\1" + CUT + rb"\2")
        return tf.strings.split(strings, CUT)

    def in_graph(self, strings: Tensor) -> Tensor:
        """Split a string tensor (B,) of UTF-8 into words, a string `tf.RaggedTensor` (B, None)."""
        import tensorflow as tf

        strings = tf.strings.regex_replace(strings, _expanded(self.cut), rb"\1" + CUT + rb"\2")
        strings = tf.strings.regex_replace(strings, _expanded(self.words), rb"\0" + CUT)
        words = tf.strings.split(strings, CUT)
        return ragged.select(words, words.values != "")


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n<L><N>]?[<L>]+|[<N>]{1,3}|"
    r" ?[^<S><L><N>]+[\r\n]*|[<S>]*[\r\n]+|[<S>]+"
)
# White space that ends in a line break is one word.
_LLAMA3_CUT = r"([<S>])([<B>][^<S>])"

PRE_TOKENIZERS = {
    "gpt2": PreTokenizer(
        pattern=_GPT2,
        words=r"'(?:[stmd]|re|ve|ll)| ?[<L>]+| ?[<N>]+| ?[^<S><L><N>]+|[<S>]+",
        cut=r"([<S>])([<S>][^<S>])",
    ),
    "llama3": PreTokenizer(_LLAMA3, _LLAMA3_WORDS, _LLAMA3_CUT),
    "qwen": PreTokenizer(
        pattern=_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
        words=_LLAMA3_WORDS.replace("{1,3}", ""),
        cut=_LLAMA3_CUT,
    ),
    "smollm": PreTokenizer(
        pattern=_GPT2,
        words=r"'(?:[stmd]|re|ve|ll)| ?[<L>]+|[<D>]| ?[^<S><L><D>]+|[<S>]+",
        cut=r"([<S>])([<S>][^<S><D>])",
        split_digits=True,
    ),
}


@functools.cache
def _expanded(pattern):
    for name, inside in (
        ("<L>", lambda: character_classes.matching(r"\p{L}")),
        ("<N>", lambda: character_classes.matching(r"\p{N}")),
        ("<S>", lambda: character_classes.matching(r"\s")),
        ("<B>", lambda: character_classes.matching(r"[^\S\r\n]")),
        ("<D>", character_classes.digits),
    ):
        if name in pattern:
            pattern = pattern.replace(name, inside())
    return pattern
