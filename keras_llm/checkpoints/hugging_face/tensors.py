"""The weights of a Hugging Face folder as a lazy mapping, and the writing of them."""

import collections.abc
import contextlib
import json
import pathlib

import ml_dtypes  # noqa: F401, teaches NumPy bfloat16
import safetensors
import safetensors.numpy

from keras_llm.errors import InputError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = ("F64", "F32", "F16", "BF16")


class Tensors(collections.abc.Mapping):
    """Names to NumPy arrays, read from the file each time one is asked for.

    The names and shapes of all are known at once, so that a checkpoint can be checked before any
    of it is used.

    Args:
        sources: dict of name to a pair: the shape, and a function of none that reads the array.
        where: str, what the tensors are of; it begins error messages.
    """

    def __init__(self, sources, where):
        self._sources = sources
        self.where = where

    def __getitem__(self, name):
        if name not in self._sources:
            raise KeyError(name)
        return self._sources[name][1]()

    def __iter__(self):
        return iter(self._sources)

    def __len__(self):
        return len(self._sources)

    def __contains__(self, name):
        return name in self._sources

    def renamed(self, rename):
        """The same tensors under other names; `rename` is a function from name to name."""
        return Tensors({rename(name): source for name, source in self._sources.items()}, self.where)

    def shape(self, name):
        """The shape of one tensor, without reading it."""
        return self._sources[name][0]


def open_folder(folder):
    """The weights of a Hugging Face folder.

    Args:
        folder: str or path; it holds `model.safetensors`, or `model.safetensors.index.json` and
            the files that it names. Pickled weights are never read.

    Returns:
        A `Tensors`.

    Raises:
        InputError: naming the file, and the tensor, that is missing or cannot be read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.")
    if (folder / INDEX_FILE).is_file():
        return Tensors(_sharded(folder), folder / INDEX_FILE)
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return Tensors(_open_file(path), path)
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    if pickled:
        raise InputError(
            f"{folder} has its weights as {pickled[0]}, a pickle, which can run any code when it "
            f"is read; convert it to {WEIGHTS_FILE} with the library that wrote it."
        )
    raise InputError(f"{path} is missing.")


def write_file(path, tensors):
    """Write a dict of name to NumPy array as one safetensors file."""
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def read_json(path):
    """A JSON object from a file.

    Raises:
        InputError: if the file is missing, or is not a JSON object.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing.")
    try:
        row = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors are both of this kind
        raise InputError(f"{path} is not JSON: {error}.") from None
    if not isinstance(row, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(row).__name__}.")
    return row


def _sharded(folder):
    index = folder / INDEX_FILE
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{index}: `weight_map` must map names of tensors to names of files.")
    shards = {}
    for file in sorted(set(files.values())):
        if pathlib.PurePath(file).name != file:
            raise InputError(f"{index}: {file!r} must be a file of the same folder.")
        if not (folder / file).is_file():
            raise InputError(f"{folder / file} is missing; {index.name} names it.")
        shards[file] = _open_file(folder / file)
    for name, file in files.items():
        if name not in shards[file]:
            raise InputError(f"{folder / file}: tensor {name!r} is missing; {index.name} names it.")
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
                f"{path}: tensor {name!r} is of dtype {dtype}; known are {', '.join(_DTYPES)}."
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
