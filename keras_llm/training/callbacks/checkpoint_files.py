"""Read and write checkpoints of `Resume`: one file each, written atomically, with checksums."""

import json
import os
import pathlib
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_llm.files import atomic_file
from keras_llm.training.distribution import replicas
from keras_llm.types import JSON

SUFFIX = ".checkpoint.npz"


class Checkpoint:
    """The state of a run: `meta` (JSON types) and `arrays` (one per variable)."""

    def __init__(self, meta: JSON | str, arrays: list[np.ndarray] | None) -> None:
        self.meta: Any = meta
        self.arrays: Any = arrays

    def restore(self, variables: Sequence[keras.Variable]) -> None:
        """Assign the arrays to the variables, in order."""
        dtypes = [keras.backend.standardize_dtype(variable.dtype) for variable in variables]
        arrays = [
            array.view("bfloat16") if dtype == "bfloat16" else array
            for array, dtype in zip(self.arrays, dtypes, strict=True)
        ]
        replicas.write(variables, arrays)

    def without_arrays(self) -> "Checkpoint":
        """Return a copy without arrays, to free their memory."""
        return Checkpoint(self.meta, None)

    def write(self, path: pathlib.Path) -> None:
        """Write the file atomically."""
        arrays: dict[str, Any] = {f"v{i}": array for i, array in enumerate(self.arrays)}
        for name, array in arrays.items():
            if array.dtype.kind == "V":  # bfloat16, which NumPy files do not support
                arrays[name] = array.view("uint16")
        with atomic_file(path, overwrite=True) as partial, open(partial, "wb") as file:
            np.savez(file, meta=np.array(self.meta), **arrays)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """Read a file. Reading every array also verifies its checksum."""
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            return cls(meta, [file[f"v{i}"] for i in range(len(file.files) - 1)])


def path_of(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step_{step:010d}{SUFFIX}"


def paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the paths of all checkpoints, newest first."""
    return sorted(folder.glob(f"step_*{SUFFIX}"), reverse=True)


def latest(folder: pathlib.Path) -> tuple[Checkpoint, pathlib.Path] | tuple[None, None]:
    """Return the newest valid checkpoint and its path, or (None, None)."""
    read_errors = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError)
    for path in paths(folder):
        try:
            return Checkpoint.read(path), path
        except read_errors as error:
            warnings.warn(
                f"checkpoint {path} is corrupt, skipped: {error}", RuntimeWarning, stacklevel=3
            )
    return None, None


def clear_unfinished(folder: pathlib.Path) -> None:
    """Remove temporary files left by a killed process."""
    for path in folder.glob(f".*step_*{SUFFIX}*"):
        path.unlink(missing_ok=True)
