"""Convert NumPy arrays to and from TensorProtos and TensorFlow Serving's JSON.

Input is validated: an array is only created if the message has the values for its shape. Strings
are object arrays of bytes.
"""

import base64
import binascii
import itertools
import math
from typing import Any

import numpy as np

from keras_llm.errors import InputError

# tensorflow/core/framework/types.proto: DataType.
FLOAT, INT32, STRING, INT64, BOOL, BFLOAT16, HALF = 1, 3, 7, 9, 10, 14, 19
_NUMPY = {
    FLOAT: "float32",
    2: "float64",
    INT32: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    INT64: "int64",
    BOOL: "bool",
    17: "uint16",
    HALF: "float16",
    22: "uint32",
    23: "uint64",
}
_VALUES = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}
_NAMES = {**{number: f"DT_{name.upper()}" for number, name in _NUMPY.items()}}
_NAMES |= {FLOAT: "DT_FLOAT", 2: "DT_DOUBLE", HALF: "DT_HALF", STRING: "DT_STRING"}
_NAMES |= {BFLOAT16: "DT_BFLOAT16"}
_MAX_DIMS = 64  # the maximum of NumPy
_REPEATED_AT_MOST = 2**20  # maximum number of elements filled in with the last value


def dtype_name(number: int) -> str:
    """Return the name of a DataType, e.g. "DT_FLOAT"."""
    return _NAMES.get(number, f"DataType {number}")


def dtype_number(name: str) -> int:
    """Return the number of a DataType, or 0 if the name is unknown."""
    return next((number for number, value in _NAMES.items() if value == name), 0)


def numpy_dtype(number: int) -> np.dtype:
    """Return the NumPy dtype of a DataType; object for strings.

    Raises:
        InputError: if the DataType is not supported.
    """
    if number == STRING:
        return np.dtype(object)
    if number == BFLOAT16:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    if number not in _NUMPY:
        raise InputError(f"{dtype_name(number)} is not supported.")
    return np.dtype(_NUMPY[number])


def as_array(name: str, value: Any, number: int) -> np.ndarray:
    """Convert a value to an array of a DataType.

    Args:
        name: str. Name of the input, for error messages.
        value: number, str, bytes, nested lists of them, or array.
        number: the DataType.

    Raises:
        InputError: if the conversion would change a value.
    """
    if number == STRING:
        values = np.asarray(value, object)
        strings = np.empty(values.shape, object)
        for index, text in np.ndenumerate(values):
            strings[index] = _bytes_of(name, text)
        return strings
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"`{name}`: the lists have different lengths.") from None
    return _cast(name, array, number)


def fill_proto(proto: Any, array: np.ndarray, number: int) -> None:
    """Write an array into an empty TensorProto."""
    proto.dtype = number
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if number == STRING:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = np.ascontiguousarray(array).tobytes()


def from_proto(name: str, proto: Any) -> np.ndarray:
    """Convert a TensorProto to an array.

    Args:
        name: str. Name of the tensor, for error messages.
        proto: a TensorProto, from `wire` or generated.

    Raises:
        InputError: if its shape, type and values do not match.
    """
    try:
        dtype = numpy_dtype(proto.dtype)
    except InputError as error:
        raise InputError(f"`{name}`: {error}") from None
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape) or len(shape) > 32:
        raise InputError(f"`{name}`: the shape must be known, got {shape[:33]}.")
    count = math.prod(shape)
    if proto.tensor_content:
        content = proto.tensor_content
        if proto.dtype == STRING or len(content) != count * dtype.itemsize:
            raise InputError(
                f"`{name}`: {len(content)} bytes of content do not match "
                f"{dtype_name(proto.dtype)} of shape {shape}."
            )
        return np.frombuffer(content, dtype).reshape(shape)
    values = _written(proto, dtype)
    if len(values) > count or count - len(values) > _REPEATED_AT_MOST:
        raise InputError(f"`{name}`: {len(values)} values do not match shape {shape}.")
    if len(values) < count:  # the last value is repeated; without values, all are zero
        last = (
            values[-1:] if len(values) else np.array([b"" if proto.dtype == STRING else 0], dtype)
        )
        values = np.concatenate([values, np.repeat(last, count - len(values))])
    return values.reshape(shape)


def from_json(name: str, value: Any, number: int) -> np.ndarray:
    """Convert a JSON value to an array of a DataType; str and `{"b64": "..."}` become bytes.

    Raises:
        InputError: if the value is not a tensor of that type.
    """
    shape, values = _flattened(name, value)
    if number == STRING:
        objects = np.empty(len(values), "object")
        objects[:] = [_json_bytes(name, part) for part in values]
        return objects.reshape(shape)
    # NumPy makes an array of strings as wide as the longest, which may take gigabytes.
    kinds = set(map(type, values))
    if not kinds <= {bool, int, float}:
        if list in kinds:
            raise InputError(f"`{name}`: the lists have different lengths.")
        kind = "text" if kinds == {str} else "other values"
        raise InputError(f"`{name}` must be {dtype_name(number)}, got {kind}.")
    if len(kinds) > 1 and bool in kinds:  # NumPy would convert booleans to numbers
        raise InputError(f"`{name}` must be {dtype_name(number)}, got booleans and numbers.")
    return _cast(name, np.asarray(values), number).reshape(shape)


def to_json(name: str, array: np.ndarray) -> Any:
    """Convert an array to a JSON value in TensorFlow Serving's format.

    Bytes are decoded as UTF-8, with U+FFFD for invalid bytes; if the name ends with "_bytes", they
    become `{"b64": "..."}`.
    """
    if array.dtype != object:
        return array.astype("float32").tolist() if array.dtype.kind == "V" else array.tolist()
    as_bytes = name.endswith("_bytes")

    def convert(value):
        if isinstance(value, list):
            return [convert(part) for part in value]
        if as_bytes:
            return {"b64": base64.b64encode(value).decode()}
        return value.decode("utf-8", "replace")

    return convert(array.tolist())


def _cast(name, array, number):
    dtype = numpy_dtype(number)
    is_whole = dtype.kind in "iu"
    allowed = {"b": "b", "i": "iu", "u": "iu"}.get(dtype.kind, "iufV")
    if array.size == 0 and array.dtype.kind == "f":  # NumPy converts an empty list to float
        return array.astype(dtype)
    if array.dtype.kind not in allowed:
        kinds = {"U": "text", "S": "text", "O": "other values", "b": "booleans"}
        kind = kinds.get(array.dtype.kind, array.dtype)
        raise InputError(f"`{name}` must be {dtype_name(number)}, got {kind}.")
    if is_whole and array.size:
        bounds = np.iinfo(dtype)
        if not (int(array.min()) >= bounds.min and int(array.max()) <= bounds.max):
            raise InputError(
                f"`{name}` must be {dtype_name(number)}, in {bounds.min} .. {bounds.max}."
            )
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def _written(proto, dtype):
    if proto.dtype == STRING:
        values = np.empty(len(proto.string_val), object)
        values[:] = list(proto.string_val)
        return values
    if proto.dtype in (HALF, BFLOAT16):
        return np.array(proto.half_val, "int32").astype("uint16").view(dtype)
    field = _VALUES.get(dtype.name, "int_val")
    return np.array(getattr(proto, field), dtype if field != "int_val" else "int32").astype(dtype)


def _flattened(name, value):
    """Return the shape of nested lists and a list of their values."""
    shape, values = [], [value]
    while values and isinstance(values[0], list):
        size = len(values[0])
        if any(not isinstance(part, list) or len(part) != size for part in values):
            raise InputError(f"`{name}`: the lists have different lengths.")
        shape.append(size)
        if len(shape) > _MAX_DIMS:
            raise InputError(f"`{name}` must have at most {_MAX_DIMS} dimensions.")
        values = list(itertools.chain.from_iterable(values))
    return shape, values


def _json_bytes(name, value):
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"`{name}`: `b64` is not valid base64.") from None
    return _bytes_of(name, value)


def _bytes_of(name, text):
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise InputError(f"`{name}` must be text, got {type(text).__name__}.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"`{name}` is not valid Unicode: {error.reason}.") from None
