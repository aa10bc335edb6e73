"""Checkpoints of `Resume` on disk: each one file, whole or not there, its parts with checksums."""

import json
import os
import warnings
import zipfile

import keras
import numpy as np

from keras_llm.files import atomic_file
from keras_llm.training.distribution import replicas

SUFFIX = ".checkpoint.npz"


class Checkpoint:
    """The state of a run: `meta`, JSON types, and `arrays`, one for each variable."""

    def __init__(self, meta, arrays):
        self.meta, self.arrays = meta, arrays

    def restore(self, variables):
        """Set the variables, of which there is one for each array."""
        dtypes = [keras.backend.standardize_dtype(variable.dtype) for variable in variables]
        arrays = [
            array.view("bfloat16") if dtype == "bfloat16" else array
            for array, dtype in zip(self.arrays, dtypes, strict=True)
        ]
        replicas.write(variables, arrays)

    def without_arrays(self):
        """The same, without the memory of the arrays."""
        return Checkpoint(self.meta, None)

    def write(self, path):
        """Leave the file whole on the disk, or none."""
        arrays = {f"v{i}": array for i, array in enumerate(self.arrays)}
        for name, array in arrays.items():
            if array.dtype.kind == "V":  # bfloat16, which NumPy's files do not know
                arrays[name] = array.view("uint16")
        with atomic_file(path, overwrite=True) as partial, open(partial, "wb") as file:
            np.savez(file, meta=np.array(self.meta), **arrays)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, path):
        """Every part is read, and so its checksum compared."""
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            return cls(meta, [file[f"v{i}"] for i in range(len(file.files) - 1)])


def path_of(folder, step):
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:010d}{SUFFIX}"


def paths(folder):
    """The checkpoints, the newest first."""
    return sorted(folder.glob(f"step_*{SUFFIX}"), reverse=True)


def latest(folder):
    """The newest checkpoint that is whole and its path, or None twice."""
    torn = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError)
    for path in paths(folder):
        try:
            return Checkpoint.read(path), path
        except torn as error:
            warnings.warn(
                f"checkpoint {path} is torn and left aside: {error}", RuntimeWarning, stacklevel=3
            )
    return None, None


def clear_unfinished(folder):
    """Remove what a kill left under a temporary name."""
    for path in folder.glob(f".*step_*{SUFFIX}*"):
        path.unlink(missing_ok=True)
