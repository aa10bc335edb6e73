"""Batch rows of unequal length by similar length with padding, deterministic by seed."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_llm.errors import InputError
from keras_llm.types import Dataset, Tensor

_POOL = 32  # batches whose rows are sorted by length together
_STEP = 32  # batch lengths on JAX are multiples of this


def batch_plan(
    lengths: Sequence[int] | np.ndarray | Sequence[Sequence[int]] | Sequence[np.ndarray],
    batch_size: int,
    epochs: int = 1,
    seed: int | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Assign rows to batches.

    With a seed, each epoch shuffles the rows, sorts them by length within pools of 32 batches, and
    shuffles the batches. The result is a pure function of (seed, epoch, step). Rows that do not
    fill a last batch are skipped in that epoch. Without a seed, all rows are sorted by length, and
    the last batch may be smaller.

    Args:
        lengths: int array (N,), or a list of several such arrays, sort keys in order of priority.
        batch_size: int > 0. B.
        epochs: int > 0; without a seed there is one pass.
        seed: int >= 0, or None for no shuffling.

    Returns:
        Int array (epochs * steps, B) with a seed, else a list of int arrays of at most B rows.

    Raises:
        InputError: with a seed, if there are fewer rows than `batch_size`.
    """
    keys = np.atleast_2d(np.asarray(lengths))
    count = keys.shape[1]
    if seed is None:
        order = np.lexsort(keys[::-1])
        return [order[begin : begin + batch_size] for begin in range(0, count, batch_size)]
    steps = count // batch_size
    if not steps:
        raise InputError(f"{count} rows are too few for one batch of {batch_size}.")
    return np.concatenate([_epoch(keys, batch_size, steps, (seed, e)) for e in range(epochs)])


def padded_dataset(
    columns: Mapping[str, list[list[int]] | np.ndarray],
    plan: np.ndarray | list[np.ndarray],
    pad_id: int | dict[str, int] = 0,
) -> Dataset:
    """Create batches of rows that are padded on the right.

    Args:
        columns: dict of name to N rows: lists of ints of any length, or an array (N, ...).
        plan: from `batch_plan`.
        pad_id: int, or a dict of name to int, that pads rows of ints.

    Returns:
        `tf.data.Dataset` of `len(plan)` dicts. A column of lists yields int32 (B, T) under its
        name, where T is the longest length in the batch, and int32 (B,) under `<name>_length`. A
        column that is an array yields (B, ...). On Keras's JAX backend, which compiles each shape
        separately, T is rounded up to a multiple of 32, but at most to the longest row of all.
    """
    import tensorflow as tf

    ragged = {name: ragged_rows(rows) for name, rows in columns.items() if isinstance(rows, list)}
    arrays = {name: tf.constant(v) for name, v in columns.items() if name not in ragged}
    batches = ragged_rows(list(plan))

    def batch(step):
        rows = batches[step]
        batch_columns = {name: tf.gather(array, rows) for name, array in arrays.items()}
        for name, tensor in ragged.items():
            picked = tf.gather(tensor, rows)
            fill = pad_id[name] if isinstance(pad_id, dict) else pad_id
            batch_columns[name] = picked.to_tensor(fill)
            if keras.backend.backend() == "jax":
                length = picked.bounding_shape(axis=1)
                width = tf.minimum(-(-length // _STEP) * _STEP, tensor.bounding_shape(axis=1))
                padding = [[0, 0], [0, width - length]]
                batch_columns[name] = tf.pad(batch_columns[name], padding, constant_values=fill)
            batch_columns[f"{name}_length"] = tf.cast(picked.row_lengths(), tf.int32)
        return batch_columns

    dataset = tf.data.Dataset.range(len(plan)).map(batch, num_parallel_calls=2, deterministic=True)
    # The parallelism is fixed: autotuning would make short runs wait for its thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def _epoch(keys, batch_size, steps, seed):
    random = np.random.default_rng(seed)
    rows = random.permutation(keys.shape[1])[: steps * batch_size]
    pools = [
        pool[np.lexsort(keys[::-1, pool])]
        for pool in np.split(rows, range(_POOL * batch_size, len(rows), _POOL * batch_size))
    ]
    return random.permutation(np.concatenate(pools).reshape(steps, batch_size))


def ragged_rows(rows: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Convert lists of ints to an int32 `tf.RaggedTensor` (N, None)."""
    import tensorflow as tf

    lengths = np.array([len(row) for row in rows], "int64")
    flat = np.concatenate([np.asarray(row, "int32") for row in rows])
    return tf.RaggedTensor.from_row_lengths(tf.constant(flat), tf.constant(lengths))
