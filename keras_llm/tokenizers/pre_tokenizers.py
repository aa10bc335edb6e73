"""How byte-level BPE cuts a text into words, in Python and in a graph.

The original patterns look ahead (`\\s+(?!\\S)`: a run of white space without its last character
if a word follows), which RE2, TensorFlow's regular expressions, cannot. In a graph a byte that no
UTF-8 text contains is put where a run is to be cut, before the words are matched.
"""

import dataclasses
import functools

import tokenizers

from keras_llm.tokenizers.graph import character_classes

CUT = b"\xff"


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """One way to cut.

    Attributes:
        pattern: str, the original's regular expression, whose matches are the words.
        words: str, the same for RE2 in texts that are cut. `<L>`, `<N>`, `<S>`, `<B>` and
            `<D>` stand for the insides of the classes of letters, numbers, white space, white
            space that breaks no line, and digits.
        cut: str for RE2, what a cut comes between: two groups.
        split_digits: bool. Whether every digit is a word of its own before `pattern` applies.
    """

    pattern: str
    words: str
    cut: str
    split_digits: bool = False

    def in_rust(self):
        """The `tokenizers.pre_tokenizers.PreTokenizer` that gives byte-level words."""
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
    def parts(strings):
        """Where any of these patterns cuts: before a space that follows a visible character.

        Strings (B,) -> string `tf.RaggedTensor` (B, None) of longer parts, many of them alike.
        """
        import tensorflow as tf

        strings = tf.strings.regex_replace(strings, "([!-~])( )", rb"\1" + CUT + rb"\2")
        return tf.strings.split(strings, CUT)

    def in_graph(self, strings):
        """String tensor (B,) of UTF-8 -> string `tf.RaggedTensor` (B, None) of words."""
        import tensorflow as tf

        strings = tf.strings.regex_replace(strings, _spelled(self.cut), rb"\1" + CUT + rb"\2")
        strings = tf.strings.regex_replace(strings, _spelled(self.words), rb"\0" + CUT)
        words = tf.strings.split(strings, CUT)
        return tf.ragged.boolean_mask(words, words != "")


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n<L><N>]?[<L>]+|[<N>]{1,3}|"
    r" ?[^<S><L><N>]+[\r\n]*|[<S>]*[\r\n]+|[<S>]+"
)
# A run that a line break ends is a word with it.
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
def _spelled(pattern):
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
