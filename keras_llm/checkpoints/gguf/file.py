"""Read the metadata and tensors of a GGUF file."""

import math
import mmap
import pathlib
import struct
from typing import Any

import numpy as np

from keras_llm.checkpoints.hugging_face.tensors import Tensors
from keras_llm.errors import InputError
from keras_llm.types import JSON, PathLike

_VERSIONS = (2, 3)
_UINT32, _STRING, _ARRAY = 4, 8, 9
# Formats of `struct` of the numbers, by value type.
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MOST_VALUES = 1 << 24  # in all arrays; the largest vocabularies have a tenth of it
_MOST_AXES = 4


def open_gguf(path: PathLike) -> tuple[JSON, Tensors]:
    """Read the header of a GGUF file; tensors are dequantized on access.

    Args:
        path: str or path.

    Returns:
        Metadata, a dict of str to int, float, bool, str or a list of these; and a `Tensors` of
        float32 arrays with the last axis contiguous, i.e. (out, in) for a matrix.

    Raises:
        InputError: if the `gguf` package or the file is missing, or the file is corrupt. Accessing
            a tensor of an unsupported type raises an InputError that names the tensor.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("reading GGUF files needs the package gguf: pip install gguf.") from None
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        metadata, tensors = _Header(data).read()
    except (ValueError, struct.error) as error:  # among them UnicodeDecodeError
        raise InputError(f"{path} is not a GGUF file or is corrupt: {error}.") from None
    if not tensors:
        raise InputError(f"{path} has no tensors.")

    def source_of(name, shape, kind, offset):
        try:
            kind = gguf.GGMLQuantizationType(kind)
            block, size = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise InputError(f"{path}: tensor {name!r} has the unknown type {kind}.") from None
        count = math.prod(shape)
        if shape[-1] % block or offset + count // block * size > len(data):
            raise InputError(f"{path}: tensor {name!r} of shape {shape} is not in the file.")

        def read():
            content = np.frombuffer(data, "uint8", count // block * size, offset)
            rows = content.reshape(*shape[:-1], shape[-1] // block * size)
            try:
                return gguf.quants.dequantize(rows, kind).reshape(shape)
            except NotImplementedError:
                raise InputError(
                    f"{path}: tensor {name!r} has the type {kind.name}, which cannot be "
                    "dequantized; use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1 or K-quants."
                ) from None

        return shape, read

    return metadata, Tensors({row[0]: source_of(*row) for row in tensors}, path)


class _Header:
    """The header of a GGUF file. Counts and sizes are checked before they are used."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._left = data, 0, _MOST_VALUES

    def read(self) -> tuple[JSON, list[tuple[str, tuple[int, ...], int, int]]]:
        """Return the metadata, and a row (name, shape, type, offset) for each tensor."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, num_tensors, num_fields = self._numbers("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"the version is {version}; it must be 2 or 3, in little-endian order")
        # The least bytes of a field and of a tensor bound their numbers.
        self._check_count(num_fields, 13)
        metadata: JSON = {}
        for _ in range(num_fields):
            name = self._string()
            if name in metadata:
                raise ValueError(f"the field {name!r} is there twice")
            metadata[name] = self._field(name)
        self._check_count(num_tensors, 24)
        rows = [self._tensor() for _ in range(num_tensors)]
        if len({row[0] for row in rows}) < len(rows):
            raise ValueError("two tensors have the same name")
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"the alignment is {alignment!r}; it must be a power of two")
        begin = -(-self._at // alignment) * alignment
        return metadata, [(*row[:3], begin + row[3]) for row in rows]

    def _field(self, name: str) -> Any:
        (kind,) = self._numbers("I")
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise ValueError(f"the field {name!r} has the unknown type {kind}")
            return self._numbers(_NUMBERS[kind])[0]
        kind, count = self._numbers("IQ")
        self._left -= count
        if self._left < 0:
            raise ValueError(f"the arrays have more than {_MOST_VALUES} values")
        if kind == _STRING:
            self._check_count(count, 8)
            return [self._string() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"the array {name!r} has the type {kind}, which is not supported")
        self._check_count(count, struct.calcsize(_NUMBERS[kind]))
        return list(self._numbers(f"{count}{_NUMBERS[kind]}"))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (num_axes,) = self._string(), self._numbers("I")
        if not 0 < num_axes <= _MOST_AXES:
            raise ValueError(f"the tensor {name!r} has {num_axes} axes; the most are {_MOST_AXES}")
        *shape, kind, offset = self._numbers(f"{num_axes}QIQ")
        return name, tuple(shape[::-1]), kind, offset

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        self._check_count(length, 1)
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _numbers(self, formats: str) -> tuple[Any, ...]:
        numbers = struct.unpack_from(f"<{formats}", self._data, self._at)
        self._at += struct.calcsize(f"<{formats}")
        return numbers

    def _check_count(self, count, size):
        if count * size > len(self._data) - self._at:
            raise ValueError(f"{count} values do not fit into the file")
