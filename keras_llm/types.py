"""Define types that several packages share."""

import dataclasses
import os
from typing import Any, TypeAlias

Tensor: TypeAlias = Any  # a tensor of Keras's backend, or what converts to one
Dataset: TypeAlias = Any  # a `tf.data.Dataset`, which other backends need not import
PathLike: TypeAlias = str | os.PathLike[str]
JSON: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Spelling:
    """The UTF-8 bytes of each token, by id. Tokens may begin and end inside a character.

    Attributes:
        tokens: list of bytes, None for tokens without text, such as special tokens.
        first: the same for the first token of a text, where decoding may remove a space.
        strips_all_leading_spaces: bool. Whether decoding removes all spaces at the beginning, so
            that the token after an empty first token also counts as the first.
    """

    tokens: list[bytes | None]
    first: list[bytes | None]
    strips_all_leading_spaces: bool = False
