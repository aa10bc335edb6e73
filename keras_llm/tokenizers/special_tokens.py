"""Split texts at special tokens, with the flags of the `tokenizers` library."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

import tokenizers

from keras_llm.errors import InputError, require_list

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_TEXT = "\x00"  # the only piece of the vocabulary, for everything between special tokens


class SpecialToken(NamedTuple):
    """A token that `parse_special` recognizes in a text.

    Attributes:
        content: str.
        token_id: int.
        lstrip, rstrip: bool. Whether it includes the white space before it and after it.
        single_word: bool. Whether it is only recognized where no letter, number or underscore is
            next to it.
        normalized: bool. Whether it is looked for in normalized text.
    """

    content: str
    token_id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    def in_rust(self) -> tokenizers.AddedToken:
        """Return the `tokenizers.AddedToken`."""
        flags = {name: getattr(self, name) for name in FLAGS}
        return tokenizers.AddedToken(self.content, **flags)


def special_tokens_of(
    special_tokens: dict[str, int], flags: dict[str, list[str]]
) -> list[SpecialToken]:
    """Return the `SpecialToken`s.

    Args:
        special_tokens: dict str -> id.
        flags: dict from a flag to the tokens that have it.
    """
    return [
        SpecialToken(token, index, *(token in flags[name] for name in FLAGS))
        for token, index in special_tokens.items()
    ]


def checked_flags(special_tokens: Iterable[str], **flags: Iterable[str]) -> dict[str, list[str]]:
    """Validate the tokens of each flag; return a dict from all flags to lists of tokens.

    Raises:
        InputError: if a token is not a special token.
    """
    special_tokens = set(special_tokens)
    for name, tokens in flags.items():
        require_list(name, tokens)
    checked = {name: list(flags.get(name, ())) for name in FLAGS}
    for name, tokens in checked.items():
        for token in tokens:
            if token not in special_tokens:
                raise InputError(f"`{name}`: {token!r} is not in `special_tokens`.")
    return checked


class Splitter:
    """Split texts at special tokens as the `tokenizers` library does.

    Args:
        tokens: `SpecialToken`s, whose `normalized` is ignored.
    """

    def __init__(self, tokens: list[SpecialToken]) -> None:
        self._tokens = tokens

    def split(self, text: str) -> list[tuple[int, str, int]]:
        """Split a text into triples.

        Returns:
            A list of (id, part, start): the id of a special token, or -1 for the text between
            special tokens; a str; and where it starts in the text, an int.
        """
        if not self._tokens or not self._pattern.search(text):
            return [(-1, text, 0)] if text else []
        encoding = self._rust.encode(text, add_special_tokens=False)
        return [
            (self._ids[index], text[begin:end], begin)
            for index, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    @functools.cached_property
    def _pattern(self):
        return re.compile("|".join(re.escape(token.content) for token in self._tokens))

    @functools.cached_property
    def _rust(self):
        rust = tokenizers.Tokenizer(tokenizers.models.WordLevel({_TEXT: 0}, unk_token=_TEXT))
        rust.add_tokens([token._replace(normalized=False).in_rust() for token in self._tokens])
        return rust

    @functools.cached_property
    def _ids(self):
        ids = {self._rust.token_to_id(token.content): token.token_id for token in self._tokens}
        return {**ids, 0: -1}
