"""The search for answer spans, in NumPy and in graphs, against every span tried."""

import numpy as np
import pytest
from keras import ops

from keras_llm.span_search import best_span, window_starts, window_step


def tried(start, end, is_context, longest, unanswerable):
    """What `best_span` returns for one row of windows, by trying all spans."""
    spans = [
        (start[w, i] + end[w, i + more], w, i, more)
        for w in range(len(start))
        for i in range(start.shape[1])
        for more in range(longest)
        if is_context[w, i : i + more + 1].all() and i + more < start.shape[1]
    ]
    score, window, first, length = max(spans, key=lambda span: span[0])
    places = is_context
    is_empty = False
    if unanswerable:
        empty = {w: start[w, 0] + end[w, 0] for w in range(len(start)) if is_context[w].any()}
        lowest = min(empty, key=empty.get)
        is_empty = empty[lowest] >= score
        if is_empty:
            window, first, length = lowest, 0, 0
        places = is_context | (np.arange(start.shape[1]) == 0)
    probability = 1.0
    for side, position in ((start, first), (end, first + length)):
        weights = np.exp(side[window]) * places[window]
        probability *= weights[position] / weights.sum()
    return window, first, length, np.log(probability), is_empty


@pytest.mark.parametrize("unanswerable", [False, True])
@pytest.mark.parametrize("longest", [1, 3, 20])
def test_the_best_span_is_found_in_numpy_and_in_graphs(unanswerable, longest):
    rng = np.random.default_rng(longest)
    rows, windows, width = 40, 3, 9
    start, end = rng.normal(size=(2, rows, windows, width)).astype("float32")
    start[::2, :, 0] += 5  # rows without an answer
    begin, stop = np.sort(rng.integers(1, width + 1, (2, rows, windows, 1)), axis=0)
    begin[:, 0], stop[:, 0] = 1, np.maximum(stop[:, 0], 2)  # a row's first window has a context
    positions = np.arange(width)
    is_context = (positions >= begin) & (positions < stop)
    arguments = start, end, is_context, longest, unanswerable
    expected = [tried(*row, longest, unanswerable) for row in zip(*arguments[:3], strict=True)]
    for xp in (np, ops):
        columns = zip(*expected, strict=True)
        for found, column in zip(best_span(xp, *arguments), columns, strict=True):
            np.testing.assert_allclose(found, column, rtol=1e-5)
    empty = sum(row[-1] for row in expected)
    assert 0 < empty < rows if unanswerable else empty == 0


def test_windows_cover_a_context():
    for room in range(2, 9):
        for length in range(1, 30):
            starts = window_starts(length, room)
            covered = {token for first in starts for token in range(first, first + room)}
            assert covered >= set(range(length)) and starts[-1] < length
            assert len(starts) == 1 + -(-max(length - room, 0) // window_step(room))
