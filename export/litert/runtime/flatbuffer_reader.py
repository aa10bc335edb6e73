"""Read tables of a FlatBuffer, checking every position before it is followed."""

import struct
from typing import Any, NamedTuple

import numpy as np

# What may be read, because a table may be referred to many times: 8 for a table, 1 for a reference
# to one and for 16 numbers of a vector. Every graph of a model has the scales of all its weights:
# 25 million numbers for 7 billion weights in int8.
_MOST_READ = 4_000_000
_NUMBERS = 16
_U16, _U32, _I32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")


class Invalid(ValueError):
    """A FlatBuffer that a runtime must not read."""


class Field(NamedTuple):
    """A field of a table.

    Attributes:
        name: str.
        slot: int, its place in the vtable.
        kind: a NumPy dtype name for a number, or such a name in a list for a vector of numbers;
            "string"; "table", or ["table"] for a vector of tables.
        default: number, the value of a number that is not stored.
    """

    name: str
    slot: int
    kind: str | list[str]
    default: int = 0


class FlatBuffer:
    """A FlatBuffer of unknown origin.

    Args:
        data: bytes-like, little-endian; positions are ints from its beginning.
        size: int, the bytes that belong to it.
    """

    def __init__(self, data: Any, size: int) -> None:
        self.data, self.size, self._num_read = data, size, 0

    def root(self, identifier: bytes) -> int:
        """Return the position of the root table."""
        if self.size < 16 or bytes(self.data[4:8]) != identifier:
            raise Invalid(f"it does not begin like a {identifier.decode()} file")
        return self._u32(0)

    def table(self, at: int, fields: list[Field]) -> dict[str, Any]:
        """Read a table.

        Returns:
            A dict of field name to an int or float, array, str, or position of a table or list of
            such positions. A field that is not stored has its default, an empty array, "", -1 or
            an empty list.
        """
        offsets, end = self._offsets(at)
        values = {}
        for name, slot, kind, default in fields:
            offset = offsets[slot] if slot < len(offsets) else 0
            if isinstance(kind, list):
                values[name] = self._vector(at + offset if offset else None, kind[0])
            elif kind == "string":
                values[name] = self._string(at + offset) if offset else ""
            elif kind == "table":
                values[name] = self._target(at + offset) if offset else -1
            elif offset:
                dtype = np.dtype(kind)
                if offset + dtype.itemsize > end - at:
                    raise Invalid("a field is outside of its table")
                values[name] = self._number(at + offset, dtype)
            else:
                values[name] = default
        return values

    def check_numbers(self, at: int) -> None:
        """Check a table that has only numbers."""
        for offset in self._offsets(at)[0]:
            if at + offset + 8 > self.size:
                raise Invalid("a field is outside of the file")

    def _offsets(self, at):
        """Return the offsets of the fields of a table, 0 for those not stored, and its end."""
        self._count(8)
        if at % 4:
            raise Invalid("a table is not aligned")
        vtable = at - self._i32(at)
        size, table_size = self._u16(vtable), self._u16(vtable + 2)
        if size < 4 or size % 2 or vtable + size > self.size or at + table_size > self.size:
            raise Invalid("a table is outside of the file")
        offsets = struct.unpack_from(f"<{size // 2 - 2}H", self.data, vtable + 4)
        if table_size < 4 or (offsets and max(offsets) >= table_size):
            raise Invalid("a field is outside of its table")
        return offsets, at + table_size

    def _vector(self, at, kind):
        if kind == "table":
            if at is None:
                return []
            begin, count = self._length(at, 4)
            self._count(count)
            rows = range(begin, begin + 4 * count, 4)
            return [self._target(row) for row in rows]
        dtype = np.dtype(kind)
        if at is None:
            return np.zeros(0, dtype)
        begin, count = self._length(at, dtype.itemsize)
        if dtype.itemsize > 1:  # bytes are not looked at
            self._count(count // _NUMBERS)
        return np.frombuffer(self.data, dtype, count, begin)

    def _string(self, at):
        begin, count = self._length(at, 1)
        self._count(count // 8)
        if begin + count >= self.size or self.data[begin + count]:
            raise Invalid("a string has no end")
        try:
            return bytes(self.data[begin : begin + count]).decode()
        except UnicodeDecodeError:
            raise Invalid("a string is not UTF-8") from None

    def _length(self, at, itemsize):
        """Return the position of the first item and the number of items of a vector."""
        target = self._target(at)
        count = self._u32(target)
        if target % 4 or target + 4 + count * itemsize > self.size:
            raise Invalid("a vector is outside of the file")
        return target + 4, count

    def _count(self, number):
        self._num_read += number
        if self._num_read > _MOST_READ:
            raise Invalid("it has too many tables or numbers")

    def _target(self, at):
        target = at + self._u32(at)
        if target + 4 > self.size:
            raise Invalid("an offset is outside of the file")
        return target

    def _number(self, at, dtype):
        if at + dtype.itemsize > self.size:
            raise Invalid("a number is outside of the file")
        return np.frombuffer(self.data, dtype, 1, at)[0].item()

    def _u16(self, at):
        if not 0 <= at <= self.size - 2:
            raise Invalid("a position is outside of the file")
        return _U16.unpack_from(self.data, at)[0]

    def _u32(self, at):
        if not 0 <= at <= self.size - 4:
            raise Invalid("a position is outside of the file")
        return _U32.unpack_from(self.data, at)[0]

    def _i32(self, at):
        if not 0 <= at <= self.size - 4:
            raise Invalid("a position is outside of the file")
        return _I32.unpack_from(self.data, at)[0]
