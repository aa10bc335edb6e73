"""Read the metadata and tensors of a GGUF file."""

import pathlib

from keras_llm.checkpoints.hugging_face.tensors import Tensors
from keras_llm.errors import InputError
from keras_llm.types import JSON, PathLike

# Exceptions of the reader on corrupt files.
_CORRUPT = (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, MemoryError)


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
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        shapes = {tensor.name: tuple(tensor.shape.tolist()[::-1]) for tensor in reader.tensors}
    except _CORRUPT as error:
        raise InputError(f"{path} is not a GGUF file or is corrupt: {error}.") from None
    if not reader.tensors:
        raise InputError(f"{path} has no tensors.")

    def reader_of(tensor):
        def read():
            kind = tensor.tensor_type
            try:
                return gguf.quants.dequantize(tensor.data, kind).reshape(shapes[tensor.name])
            except NotImplementedError:
                raise InputError(
                    f"{path}: tensor {tensor.name!r} has the type {kind.name}, which cannot be "
                    "dequantized; use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1 or K-quants."
                ) from None
            except _CORRUPT as error:
                raise InputError(
                    f"{path}: tensor {tensor.name!r} cannot be read: {error}."
                ) from None

        return read

    sources = {tensor.name: (shapes[tensor.name], reader_of(tensor)) for tensor in reader.tensors}
    return metadata, Tensors(sources, path)
