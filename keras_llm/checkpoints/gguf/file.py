"""The metadata and tensors of a GGUF file."""

import pathlib

from keras_llm.checkpoints.hugging_face.tensors import Tensors
from keras_llm.errors import InputError

# What the reader raises at bytes that are not what the format says.
_CORRUPT = (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, MemoryError)


def open_gguf(path):
    """Read the head of a GGUF file; its tensors are dequantised when asked for.

    Args:
        path: str or path.

    Returns:
        Metadata, a dict of str to int, float, bool, str or a list of these; and a `Tensors` of
        float32 arrays with the last axis contiguous, i.e. (out, in) for a matrix.

    Raises:
        InputError: if the `gguf` package or the file is missing, or the file is damaged. Asking
            for a tensor of a type that cannot be dequantised raises one that names the tensor.
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
        raise InputError(f"{path} is not a GGUF file, or is damaged: {error}.") from None
    if not reader.tensors:
        raise InputError(f"{path} holds no tensors.")

    def reading(tensor):
        def read():
            kind = tensor.tensor_type
            try:
                return gguf.quants.dequantize(tensor.data, kind).reshape(shapes[tensor.name])
            except NotImplementedError:
                raise InputError(
                    f"{path}: tensor {tensor.name!r} is of type {kind.name}, which cannot be "
                    "dequantised; give a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1 or K-quants."
                ) from None
            except _CORRUPT as error:
                raise InputError(
                    f"{path}: tensor {tensor.name!r} cannot be read: {error}."
                ) from None

        return read

    sources = {tensor.name: (shapes[tensor.name], reading(tensor)) for tensor in reader.tensors}
    return metadata, Tensors(sources, path)
