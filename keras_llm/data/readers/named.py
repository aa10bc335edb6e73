"""Read named datasets from the packages `datasets` and `tensorflow-datasets`."""

import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeGuard

import numpy as np

from keras_llm.data.readers.values import checked_text
from keras_llm.errors import InputError
from keras_llm.types import JSON, PathLike

_PARTS = re.compile(r"(hf|tfds):(.+?)(?::([^:\[\]/]+(?:\[[^\]]*\][^:\[\]/]*)*))?")


def is_name(path: PathLike) -> TypeGuard[str]:
    """Return whether a path names a dataset: a str that starts with "hf:" or "tfds:"."""
    return isinstance(path, str) and path.startswith(("hf:", "tfds:"))


def named_rows(name: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of some columns of a dataset, one in memory at a time.

    Args:
        name: str, see `read_records`.
        columns: list of str; `a.b` is the field `b` of the column `a`.

    Yields:
        Tuples of str; labels as their names, numbers and booleans formatted as JSON.

    Raises:
        InputError: see `named_records`; also if a column of a row has no text.
    """
    for number, record in enumerate(named_records(name, columns), 1):
        where = f"{name}, row {number}"
        yield tuple(checked_text(where, column, _field(record, column)) for column in columns)


def named_records(name: str, columns: Iterable[str] = ()) -> Iterator[JSON]:
    """Yield the rows of a dataset as dicts of Python values.

    Raises:
        InputError: if the package is not installed, the dataset cannot be loaded, or the split or
            one of the `columns` does not exist.
    """
    match = _PARTS.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} must have the form hf:NAME:SPLIT or tfds:NAME:SPLIT.")
    kind, place, split = match.groups()
    names, rows = {"hf": _hugging_face, "tfds": _tensorflow}[kind](name, place, split)
    for column in columns:
        if column not in names and column.split(".")[0] not in names:
            raise InputError(f"{name}: no column {column!r}; it has {_list(names)}.")
    return _read(name, rows)


def _read(name, rows):
    """Yield the rows; convert errors during iteration."""
    try:
        yield from rows
    except Exception as error:  # the exception class depends on the dataset
        raise _not_loaded(name, error) from None


def _hugging_face(name, place, split):
    """Return the names of the columns, and an iterator of rows."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: this needs datasets: pip install datasets.") from None
    folder = pathlib.Path(place)
    is_saved = any((folder / f).is_file() for f in ("state.json", "dataset_dict.json"))
    try:
        if is_saved:
            dataset = datasets.load_from_disk(place)
        else:
            dataset = datasets.load_dataset(*place.split(":"), split=split)
    except Exception as error:
        raise _not_loaded(name, error) from None
    if isinstance(dataset, datasets.DatasetDict):
        dataset = dataset[_checked_split(name, split, list(dataset))]
    elif is_saved and split is not None:
        raise InputError(f"{name}: {place} has no splits.")
    labels = {
        column: feature
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def rows():
        for row in dataset:
            for column, feature in labels.items():
                row[column] = _label(feature, row[column])
            yield row

    return list(dataset.features), rows()


def _tensorflow(name, place, split):
    """Return the names of the columns of a TensorFlow dataset, and an iterator of rows."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise InputError(
            f"{name}: this needs tensorflow-datasets: pip install tensorflow-datasets."
        ) from None
    try:
        if (pathlib.Path(place) / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(place)
        else:
            builder = tfds.builder(place)
            builder.download_and_prepare()
        split = _checked_split(name, split, list(builder.info.splits), may_be_part=True)
        dataset = builder.as_dataset(split=split)
    except InputError:
        raise
    except Exception as error:
        raise _not_loaded(name, error) from None
    features = builder.info.features

    def plain(value, feature):
        if isinstance(feature, tfds.features.FeaturesDict):
            return {key: plain(value[key], feature[key]) for key in feature}
        if isinstance(feature, tfds.features.Sequence):
            return _listed(value, feature.feature, plain)
        if isinstance(feature, tfds.features.ClassLabel):
            return _label(feature, int(value))
        return _python(value)

    rows = (plain(row, features) for row in dataset.as_numpy_iterator())
    return list(features), rows


def _listed(value, feature, plain):
    """Convert a sequence to a list; a sequence of dicts arrives as a dict of sequences."""
    if isinstance(value, dict):
        parts = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    else:
        parts = list(value)
    return [plain(part, feature) for part in parts]


def _python(value):
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")  # `checked_text` rejects surrogates
    return value.item() if isinstance(value, np.generic) else value


def _label(feature, index):
    return None if index is None or index < 0 else feature.int2str(index)


def _field(record, column):
    """Return a column, or a field of a column of dicts."""
    if column in record:
        return record[column]
    first, _, rest = column.partition(".")
    value = record.get(first)
    return _field(value, rest) if rest and isinstance(value, dict) else None


def _checked_split(name, split, splits, may_be_part=False):
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise InputError(f"{name}: add a split, as in {name}:{splits[0]}; it has {_list(splits)}.")
    if split not in splits and not (may_be_part and re.search(r"[\[+]", split)):
        raise InputError(f"{name}: no split {split!r}; it has {_list(splits)}.")
    return split


def _list(names):
    return ", ".join(map(repr, names))


def _not_loaded(name, error):
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"{name} cannot be loaded: {lines[0]}")
