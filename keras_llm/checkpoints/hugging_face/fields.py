"""Read and validate the fields of a config.json."""

import sys
from typing import Any

from keras_llm.errors import InputError
from keras_llm.json_files import short_repr
from keras_llm.types import JSON, PathLike

_REQUIRED = object()
_MOST = 10_000
_LARGEST = 2**31 - 1  # of a size; sizes of tensors are computed in 32 bits
_GREATEST = sys.float_info.max
_KINDS = {int: "an int", float: "a number", bool: "true or false", str: "a str", list: "a list"}


class Fields:
    """The fields of a config, with error messages that name the file and the field.

    Args:
        row: dict.
        where: str or path, the start of error messages.
        prefix: str, put before field names in messages.
    """

    def __init__(self, row: JSON, where: PathLike, prefix: str = "") -> None:
        self.row, self.where, self._prefix = row, where, prefix

    def get(self, name: str, kind: type = int, default: Any = _REQUIRED) -> Any:
        """Return the value of a field, or `default` if it is absent or null."""
        value = self._read(name, kind, default)
        if kind is int and value is not default and value > _LARGEST:
            raise self.error(name, f"be at most {_LARGEST}")
        return value

    def _read(self, name, kind, default):
        value = self.row.get(name)
        if value is None:
            if default is _REQUIRED:
                raise self.error(name, "be present")
            return default
        number: Any = (int, float) if kind is float else kind
        if not isinstance(value, number) or (isinstance(value, bool) and kind is not bool):
            raise self.error(name, f"be {_KINDS[kind]}")
        if kind is float and not abs(value) <= _GREATEST:  # NaN too
            raise self.error(name, "be a finite number")
        return float(value) if kind is float else value

    def positive(self, name: str, default: Any = _REQUIRED) -> int:
        """Return the value of an int field, which must be at least 1."""
        value = self.get(name, int, default)
        if value is not default and value < 1:
            raise self.error(name, "be at least 1")
        return value

    def rate(self, name: str, default: Any = _REQUIRED) -> float:
        """Return the value of a dropout rate, which must be in [0, 1)."""
        value = self.get(name, float, default)
        if not 0 <= value < 1:
            raise self.error(name, "be in [0, 1)")
        return value

    def one_of(self, name: str, known: dict[str, Any], default: Any = _REQUIRED) -> Any:
        """Look up the value of a field in the dict `known`."""
        value = self.row.get(name, default)
        if value is _REQUIRED or not isinstance(value, str) or value not in known:
            raise self.error(name, f"be one of {', '.join(map(str, known))}")
        return known[value]

    def count(self, name: str, default: Any = _REQUIRED) -> int:
        """Return a count such as the number of layers.

        The value is bounded, because a corrupt file may contain any number.
        """
        value = self._read(name, int, default)
        if not 0 <= value <= _MOST:
            raise self.error(name, f"be in 0 .. {_MOST}")
        return value

    def refuse_unless(self, **values: Any) -> None:
        """Raise an error unless each field is absent, null or has the expected value."""
        for name, value in values.items():
            if self.row.get(name) not in (None, value):
                raise self.error(name, f"be {value!r}, the only supported value")

    def part(self, name: str) -> "Fields":
        """Return the fields of an object; no fields if it is absent or null."""
        value = self.row.get(name)
        if not isinstance(value, (dict, type(None))):
            raise self.error(name, "be an object")
        return Fields(value or {}, self.where, f"{self._prefix}{name}.")

    def error(self, name: str, rule: str) -> InputError:
        """Return an InputError that names the field and the rule it violates."""
        value = short_repr(self.row[name]) if name in self.row else "nothing"
        return InputError(f"{self.where}: `{self._prefix}{name}` must {rule}; got {value}.")
