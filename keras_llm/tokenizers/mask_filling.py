"""Encode texts with mask tokens and fill them in."""

from collections.abc import Iterator, Sequence

import numpy as np

from keras_llm.tokenizers.base import Tokenizer

# Trimmed from answers and around mask tokens, in Python and in graphs.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


class MaskFiller:
    """Encoding of texts with mask tokens and replacement of the masks.

    Args:
        tokenizer: a `Tokenizer` with a mask token.

    Attributes:
        mask_token: str.
        spellings: list of the pairs that the function `spellings` yields.
        is_special: bool array (V,), the tokens that have no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.mask_token = tokenizer.token(tokenizer.mask_id)
        self.spellings = list(spellings(tokenizer))
        self.is_special = np.array([not text for text, _ in self.spellings])

    def encode(self, text: str) -> list[int]:
        """Encode a text in which only the mask token is special."""
        parts = text.split(self.mask_token)
        if self._tokenizer.mask_takes_space:
            parts = [part.rstrip(WHITE_SPACE) for part in parts[:-1]] + parts[-1:]
        ids = []
        for index, part in enumerate(parts):
            ids += [self._tokenizer.mask_id] * (index > 0) + self._tokenizer.encode(part)
        return ids

    def fill(self, text: str, token_ids: Sequence[int]) -> str:
        """Replace the first mask tokens of a text; masks without a token id stay."""
        filled, *rest = text.split(self.mask_token)
        for index, part in enumerate(rest):
            if index >= len(token_ids):
                filled += self.mask_token + part
                continue
            spelling, continues = self.spellings[token_ids[index]]
            filled = (filled.rstrip(WHITE_SPACE) if continues else filled) + spelling + part
        return filled

    def display(self, token_id: int) -> str:
        """Return a token as displayed to users, a str: "##" marks the continuation of a word."""
        text, continues = self.spellings[token_id]
        return "##" + text if continues and text[0].isalnum() else text


def spellings(tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Yield the text that each token adds after a word.

    Yields:
        For each token id a pair: a str, "" for special tokens, and whether it continues the
        previous word.
    """
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    special |= {tokenizer.mask_id, *getattr(tokenizer, "special_tokens", {}).values()}
    before = tokenizer.encode("a")
    length = len(tokenizer.decode(before))
    for index in range(tokenizer.vocabulary_size):
        text = "" if index in special else tokenizer.decode([*before, index])[length:]
        yield text.removeprefix(" "), bool(text) and not text.startswith(" ")
