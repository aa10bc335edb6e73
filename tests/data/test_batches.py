"""Test batches of similar lengths: every row once per epoch, reproducible for a seed."""

import numpy as np
import pytest

from keras_llm import data
from keras_llm.errors import InputError

LENGTHS = np.random.default_rng(0).integers(1, 200, 1003)


def test_epoch_has_each_row_once_with_little_padding():
    plan = data.batch_plan(LENGTHS, 8, epochs=3, seed=5)
    assert plan.shape == (3 * 125, 8)
    epochs = plan.reshape(3, -1)
    for rows in epochs:
        assert len(set(rows)) == 1000
    assert len({tuple(rows) for rows in epochs}) == 3
    assert set(epochs[0]) != set(epochs[1])  # rows left out differ between epochs
    padded = (LENGTHS[plan].max(axis=1) * 8).sum() / LENGTHS[plan].sum()
    assert padded < 1.1 < LENGTHS.max() / LENGTHS.mean()
    widths = LENGTHS[plan[:125]].max(axis=1)
    assert abs(np.corrcoef(widths, np.arange(125))[0, 1]) < 0.3  # batches are shuffled


def test_batch_plan_depends_only_on_seed_and_epoch():
    plan = data.batch_plan(LENGTHS, 8, epochs=3, seed=5)
    np.testing.assert_array_equal(plan[:125], data.batch_plan(LENGTHS, 8, seed=5))
    np.testing.assert_array_equal(plan, data.batch_plan(LENGTHS, 8, epochs=3, seed=5))
    assert (plan[:125] != data.batch_plan(LENGTHS, 8, seed=6)).any()


def test_batch_plan_without_seed_is_sorted_by_length():
    plan = data.batch_plan(LENGTHS, 8)
    rows = np.concatenate(plan)
    assert sorted(rows) == list(range(1003)) and len(plan[-1]) == 3
    assert (np.diff(LENGTHS[rows]) >= 0).all()


def test_pairs_are_sorted_by_first_length():
    first, second = np.array([2, 1, 2, 1]), np.array([3, 9, 1, 2])
    (order,) = data.batch_plan([first, second], 4)
    assert order.tolist() == [3, 1, 2, 0]


def test_rows_are_padded_to_longest_in_batch():
    rows = [[1, 2, 3], [4], [5, 6]]
    columns = {"ids": rows, "other": [[9], [], [8, 8]], "class": np.array([7, 8, 9])}
    plan = [np.array([2, 1]), np.array([0])]
    first, second = data.padded_dataset(columns, plan, pad_id={"ids": 0, "other": -1})
    assert first["ids"].numpy().tolist() == [[5, 6], [4, 0]]
    assert first["ids_length"].numpy().tolist() == [2, 1]
    assert first["other"].numpy().tolist() == [[8, 8], [-1, -1]]
    assert first["class"].numpy().tolist() == [9, 8]
    assert second["ids"].numpy().tolist() == [[1, 2, 3]]
    assert second["other_length"].numpy().tolist() == [1]


def test_too_few_rows_for_batch_raises_error():
    with pytest.raises(InputError, match="3 rows are too few for one batch of 4"):
        data.batch_plan([1, 2, 3], 4, seed=0)
