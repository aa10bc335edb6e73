"""Values of tables as text."""

import json

from keras_llm.errors import InputError


def checked_text(where, column, value):
    """A value of a column as a str; numbers and booleans as JSON spells them.

    Args:
        where: str, what errors begin with.
        column: str.
        value: what stands there.

    Raises:
        InputError: naming `where` and the column, if it is no text, or not one that UTF-8 can
            spell, such as half of a surrogate pair.
    """
    if isinstance(value, (int, float)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: no text in column {column!r}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: column {column!r} is no text: character {error.start} stands for none."
            ) from None
    return value
