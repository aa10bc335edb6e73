"""Read the weights of a Hugging Face folder lazily, and write them."""

import collections.abc
import contextlib
import pathlib
from collections.abc import Callable, Iterator

import ml_dtypes  # noqa: F401, registers bfloat16 with NumPy
import numpy as np
import safetensors
import safetensors.numpy

from keras_llm.errors import InputError
from keras_llm.json_files import read_json
from keras_llm.types import PathLike

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = ("F64", "F32", "F16", "BF16")


class Tensors(collections.abc.Mapping):
    """A mapping of names to NumPy arrays, which are read from the file on each access.

    All names and shapes are available up front, so that a checkpoint can be validated before it is
    read.

    Args:
        sources: dict of name to a pair: the shape, and a function without arguments that reads
            the array.
        where: str, the source of the tensors; the start of error messages.
    """

    def __init__(
        self, sources: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]], where: PathLike
    ) -> None:
        self._sources = sources
        self.where = where

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._sources:
            raise KeyError(name)
        return self._sources[name][1]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def renamed(self, rename: Callable[[str], str]) -> "Tensors":
        """Return the same tensors under new names; `rename` is a function from name to name."""
        return Tensors({rename(name): source for name, source in self._sources.items()}, self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._sources[name][0]


def open_folder(folder: PathLike) -> Tensors:
    """Open the weights of a Hugging Face folder.

    Args:
        folder: str or path with `model.safetensors`, or `model.safetensors.index.json` and the
            files that it names. Pickled weights are never read.

    Returns:
        A `Tensors`.

    Raises:
        InputError: if a file or tensor is missing or cannot be read; the message names it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.")
    if (folder / INDEX_FILE).is_file():
        return Tensors(_sharded(folder), folder / INDEX_FILE)
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return open_file(path)
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    if pickled:
        raise InputError(
            f"{folder} has its weights in {pickled[0]}, a pickle, which can run arbitrary code "
            f"when loaded; convert it to {WEIGHTS_FILE} with the library that wrote it."
        )
    raise InputError(f"{path} is missing.")


def open_file(path: PathLike) -> Tensors:
    """Open a safetensors file, as `open_folder` does."""
    return Tensors(_open_file(path), path)


def write_file(path: PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Write a dict of name to NumPy array as one safetensors file."""
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _sharded(folder):
    index = folder / INDEX_FILE
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{index}: `weight_map` must map tensor names to file names.")
    shards = {}
    for file in sorted(set(files.values())):
        if pathlib.PurePath(file).name != file:
            raise InputError(f"{index}: {file!r} must be a file in the same folder.")
        if not (folder / file).is_file():
            raise InputError(f"{folder / file} is missing, but {index.name} names it.")
        shards[file] = _open_file(folder / file)
    for name, file in files.items():
        if name not in shards[file]:
            raise InputError(
                f"{folder / file}: tensor {name!r} is missing, but {index.name} names it."
            )
    return {name: source for shard in shards.values() for name, source in shard.items()}


def _open_file(path):
    with _readable(path):
        file = safetensors.safe_open(path, framework="numpy")
        sources = {}
        for name in file.keys():  # noqa: SIM118, it is not a mapping
            view = file.get_slice(name)
            sources[name] = (
                tuple(view.get_shape()),
                _reader(path, file, name, view.get_dtype()),
            )
    return sources


def _reader(path, file, name, dtype):
    def read():
        if dtype not in _DTYPES:
            raise InputError(
                f"{path}: tensor {name!r} has dtype {dtype}; it must be one of "
                f"{', '.join(_DTYPES)}."
            )
        with _readable(path, f": tensor {name!r}"):
            return file.get_tensor(name)

    return read


@contextlib.contextmanager
def _readable(path, what=""):
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}{what} cannot be read: {error}.") from None
