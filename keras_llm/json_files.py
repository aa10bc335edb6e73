"""Read JSON of unknown origin within limits, and check the types of its values."""

import collections.abc
import inspect
import json
import math
import numbers
import pathlib
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from keras_llm.errors import InputError
from keras_llm.files import read_utf8
from keras_llm.types import JSON, PathLike

_LARGEST_FILE = 1 << 28  # bytes; the largest tokenizers have a tenth of it
_MOST_LEVELS = 100
_LONGEST_VALUE = 200  # characters of a value in an error message
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_DIGITS = 40  # tokenizer_config.json may have int(1e30) as a maximum length


def read_json_value(path: PathLike) -> Any:
    """Read any JSON value from a file.

    Raises:
        InputError: if the file is missing, not UTF-8, not JSON, larger than 256 MB, nested more
            than 100 levels deep, or has an integer of more than 40 digits or half of a surrogate
            pair.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing.")
    if path.stat().st_size > _LARGEST_FILE:
        raise InputError(f"{path} has more than {_LARGEST_FILE >> 20} MB, the most for JSON.")
    return parse_json(read_utf8(path), path)


def read_json(path: PathLike) -> JSON:
    """Read a JSON object from a file.

    Raises:
        InputError: as in `read_json_value`, or if the value is not an object.
    """
    row = read_json_value(path)
    if not isinstance(row, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(row).__name__}.")
    return row


def parse_json(text: str | bytes, where: PathLike) -> Any:
    """Parse JSON within the limits of `read_json_value`.

    Args:
        text: str or bytes.
        where: str or path, the start of error messages.

    Raises:
        InputError: as in `read_json_value`.
    """
    try:
        value = json.loads(text, parse_int=_parsed_int)
        if _SURROGATE.search(text if isinstance(text, str) else text.decode()):
            json.dumps(value, ensure_ascii=False).encode()  # pairs of them are characters
    except ValueError as error:  # both JSON and UTF-8 errors
        raise InputError(f"{where} is not JSON: {error}.") from None
    except RecursionError:
        value, is_flat = None, False
    else:
        is_flat = _is_flat(value)
    if not is_flat:
        raise InputError(f"{where} is JSON nested more than {_MOST_LEVELS} levels deep.")
    return value


def check_arguments(function: Callable[..., Any], arguments: JSON, where: PathLike) -> None:
    """Check values from a file against the parameters of a function or class.

    Args:
        function: function or class with type hints.
        arguments: dict of parameter name to value, to be passed as keywords.
        where: str or path, the start of error messages.

    Raises:
        InputError: if a parameter is unknown, or a value does not have the type of its hint or is
            not finite.
    """
    parameters = inspect.signature(function).parameters
    for name in arguments:
        if name not in parameters:
            raise InputError(f"{where}: unknown field `{name}`; known: {', '.join(parameters)}.")
    check_fields(arguments, {name: parameters[name].annotation for name in arguments}, where)


def check_fields(row: JSON, hints: dict[str, Any], where: PathLike) -> None:
    """Raise InputError unless a dict has a value of the type `hints[name]` for each name."""
    for name, hint in hints.items():
        if name not in row or not _matches(row[name], hint):
            value = short_repr(row[name]) if name in row else "nothing"
            kind = inspect.formatannotation(hint)
            raise InputError(f"{where}: `{name}` must be {kind}, got {value}.")


def short_repr(value: object) -> str:
    """Return the `repr` of a value for an error message, without the middle if it is long."""
    text = repr(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    return f"{text[: _LONGEST_VALUE - 30]} ... {text[-20:]}"


def _parsed_int(digits):
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; the most is {_MOST_DIGITS}")
    return int(digits)


def _is_flat(value):
    """Return whether lists and objects are nested at most `_MOST_LEVELS` deep."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_MOST_LEVELS):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    return not level


def _matches(value, hint):
    """Return whether a value from JSON has the type of a hint."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in options)
    if hint is float:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if origin is dict:
        return isinstance(value, dict) and all(_matches(v, options[1]) for v in value.values())
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        return isinstance(value, (list, tuple)) and all(_matches(v, options[0]) for v in value)
    return hint is Any or isinstance(value, hint)
