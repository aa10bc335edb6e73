"""Convert values of tables to text."""

import json
import math
from typing import Any

from keras_llm.errors import InputError


def checked_text(where: str, column: str, value: Any) -> str:
    """Convert a value of a column to a str, with numbers and booleans formatted as JSON.

    Args:
        where: str, the start of error messages.
        column: str, the name of the column.
        value: the value.

    Raises:
        InputError: if it is not text, such as NaN, which stands for a missing value in tables, or
            not valid Unicode, such as half of a surrogate pair; the message names `where` and the
            column.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(
            f"{where}: column {column!r} must be text or a finite number, got {value}."
        )
    if isinstance(value, (int, float)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: no text in column {column!r}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: column {column!r} is not text: character {error.start} is a surrogate."
            ) from None
    return value
