"""Test that batched requests get their own outputs and errors, within their deadlines."""

import gc
import time
import weakref
from concurrent import futures

import numpy as np
import pytest

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving.server.batching import Batcher, BatchingParameters, rows_of
from keras_llm.export.serving.server.cancellation import Cancellation
from keras_llm.export.serving.server.servable import Servable


@pytest.fixture(scope="module")
def servable(tiny_base):
    loaded = Servable(tiny_base / "1")
    yield loaded
    loaded.close()


@pytest.fixture
def batcher_of():
    made = []

    def make(**parameters):
        seen = []
        made.append(
            Batcher(
                BatchingParameters(**parameters),
                lambda waits, rows: seen.append(rows),
            )
        )
        return made[-1], seen

    yield make
    for batcher in made:
        batcher.close()


def scale(x, by):
    return {"x": np.array(x, "float32"), "by": np.array(by, "float32")}


def run_all(batcher, servable, requests, signature="serving_default", **options):
    """Send all requests at the same time; return the outputs or the error of each."""
    chosen = servable.signature(signature)

    def one(arrays):
        try:
            return batcher.run(servable, chosen, arrays, **options)
        except ServingError as error:
            return error

    with futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


def test_requests_are_batched(batcher_of, servable):
    batcher, batches = batcher_of(
        max_batch_size=16, batch_timeout_micros=300_000, num_batch_threads=1
    )
    requests = [scale([[i], [i + 1]], [2.0]) for i in range(4)]  # `by` applies to both rows
    requests += [scale([[10.0], [20.0]], [1, 3])]
    answers = run_all(batcher, servable, requests)
    assert [a["y"].ravel().tolist() for a in answers] == [
        [0, 2], [2, 4], [4, 6], [6, 8], [10, 60]
    ]  # fmt: skip
    assert batches == [10]
    assert all(a["rows"].tolist() == [10, 10] for a in answers)  # one run of the graph


def test_different_inner_shapes_are_not_batched(batcher_of, servable):
    batcher, batches = batcher_of(max_batch_size=8, batch_timeout_micros=100_000)
    answers = run_all(
        batcher, servable, [scale([[1, 2]], [1]), scale([[3]], [1]), scale([[4]], [1])]
    )
    assert [a["y"].tolist() for a in answers] == [[[1, 2]], [[3]], [[4]]]
    assert sorted(batches) == [1, 2]


def test_requests_without_rows_run_alone(batcher_of, servable):
    batcher, batches = batcher_of(max_batch_size=8, batch_timeout_micros=10_000_000)
    answers = run_all(batcher, servable, [{"n": np.array(i, "int32")} for i in range(3)], "once")
    assert [int(a["n"]) for a in answers] == [1, 2, 3] and batches == []
    uneven = run_all(batcher, servable, [scale([[1], [2], [3]], [1, 2])])[0]
    assert isinstance(uneven, ServingError) and batches == []


def test_texts_determine_the_number_of_rows():
    def rows(**arrays):
        return rows_of(
            {name: np.array(v, object if name == "text" else None) for name, v in arrays.items()}
        )

    assert rows(text=["a", "b"], n=[1]) == 2 and rows(text=["a"], n=[1]) == 1
    assert rows(text=["a"], n=[1, 2, 3]) is None  # the graph itself rejects it
    assert rows(text=[], n=[1]) is None and rows(text=["a", "b"], n=[]) is None
    assert rows(x=[1, 2], n=[1]) == 2


def test_failed_request_does_not_fail_its_batch(batcher_of, servable):
    batcher, _ = batcher_of(max_batch_size=8, batch_timeout_micros=300_000)
    requests = [scale([[1]], [1]), scale([[2]], [-1]), scale([[3]], [1])]
    good, bad, other = run_all(batcher, servable, requests)
    assert good["y"].tolist() == [[1]] and other["y"].tolist() == [[3]]
    assert (bad.code, bad.message) == ("INVALID_ARGUMENT", "by must not be negative")


def test_failed_request_is_freed_immediately(batcher_of, servable):
    batcher, _ = batcher_of(max_batch_size=4)
    arrays = scale([[1.0]], [-1.0])  # the graph rejects it
    held = weakref.ref(arrays["x"])
    refused = False
    gc.collect()
    gc.disable()  # it must not need the garbage collector
    try:
        try:
            batcher.run(servable, servable.signature("serving_default"), arrays)
        except ServingError:
            refused = True
        del arrays
        end = time.monotonic() + 10  # until the batch thread leaves its frame
        while held() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert refused and held() is None
    finally:
        gc.enable()


def test_batch_is_padded_to_an_allowed_size(batcher_of, servable):
    batcher, _ = batcher_of(
        max_batch_size=8, batch_timeout_micros=100_000, allowed_batch_sizes=(4, 8)
    )
    answers = run_all(batcher, servable, [scale([[1]], [1]), scale([[2]], [1])])
    assert [a["y"].tolist() for a in answers] == [[[1]], [[2]]]
    assert answers[0]["rows"].tolist() == [4]


def test_max_batch_size(batcher_of, servable):
    batcher, batches = batcher_of(max_batch_size=3, batch_timeout_micros=50_000)
    answers = run_all(batcher, servable, [scale([[i], [i]], [1]) for i in range(5)])
    assert [a["y"].tolist() for a in answers] == [[[i], [i]] for i in range(5)]
    assert batches == [2] * 5
    (refused,) = run_all(batcher, servable, [scale([[1]] * 4, [1])])
    assert refused.code == "INVALID_ARGUMENT" and "max_batch_size" in refused.message


def test_full_queue_rejects_requests(batcher_of, servable):
    batcher, _ = batcher_of(
        max_batch_size=2,
        batch_timeout_micros=0,
        max_enqueued_batches=1,
        num_batch_threads=1,
    )
    spinning = [{"times": np.array([200_000] * 2, "int32")}] * 6
    answers = run_all(batcher, servable, spinning, "spin")
    codes = [a.code for a in answers if isinstance(a, ServingError)]
    assert codes and set(codes) == {"UNAVAILABLE"}
    done = [a for a in answers if not isinstance(a, ServingError)]
    assert done and all(a["count"].tolist() == [200_000] * 2 for a in done)


def test_expired_and_canceled_requests_are_dropped(batcher_of, servable):
    batcher, batches = batcher_of(max_batch_size=8, batch_timeout_micros=200_000)
    late = time.monotonic() + 0.01
    (error,) = run_all(batcher, servable, [scale([[1]], [1])], deadline=late)
    assert error.code == "DEADLINE_EXCEEDED" and batches == []
    gone = Cancellation()
    gone.set()
    (error,) = run_all(batcher, servable, [scale([[1]], [1])], cancellation=gone)
    assert error.code == "CANCELLED" and batches == []


def test_batch_is_stopped_when_all_its_requests_are_canceled(batcher_of, servable):
    batcher, batches = batcher_of(max_batch_size=2, batch_timeout_micros=60_000_000)
    cancellations = [Cancellation(), Cancellation()]
    signature = servable.signature("spin")

    def run(times, cancellation):
        return batcher.run(
            servable, signature, {"times": np.array([times], "int32")}, None, cancellation
        )

    with futures.ThreadPoolExecutor(2) as pool:
        forever = 2**31 - 1
        running = [pool.submit(run, forever, cancellation) for cancellation in cancellations]
        while batches != [2]:
            time.sleep(0.01)
        cancellations[0].set()
        time.sleep(0.3)
        assert not running[0].done() and not running[1].done()
        cancellations[1].set()
        for answer in running:
            with pytest.raises(ServingError) as error:
                answer.result(timeout=20)
            assert error.value.code == "CANCELLED"
        # A batch with a request that is still wanted runs to its end.
        cancellations = [Cancellation(), Cancellation()]
        running = [pool.submit(run, 200_000, cancellation) for cancellation in cancellations]
        while len(batches) < 2:
            time.sleep(0.01)
        cancellations[0].set()
        assert running[1].result(timeout=20)["count"].tolist() == [200_000]


def test_run_is_aborted_at_the_deadline(batcher_of, servable):
    batcher, _ = batcher_of(max_batch_size=8)
    begin = time.monotonic()
    forever = {"times": np.array([2**31 - 1], "int32")}
    (error,) = run_all(batcher, servable, [forever], "spin", deadline=begin + 0.3)
    assert error.code == "DEADLINE_EXCEEDED" and time.monotonic() - begin < 5


def test_close_runs_waiting_requests(servable):
    batcher = Batcher(BatchingParameters(max_batch_size=8, batch_timeout_micros=60_000_000))
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run_all, batcher, servable, [scale([[7]], [1])])
        while not batcher._queues:
            time.sleep(0.01)
        batcher.close()
        assert waiting.result(timeout=10)[0]["y"].tolist() == [[7]]
    (error,) = run_all(batcher, servable, [scale([[7]], [1])])
    assert error.code == "UNAVAILABLE"


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"num_batch_threads": 0}, "num_batch_threads"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros"),
        ({"max_batch_size": 4, "allowed_batch_sizes": (4, 2)}, "allowed_batch_sizes"),
        ({"max_batch_size": 4, "allowed_batch_sizes": (2, 3)}, "max_batch_size"),
    ],
)
def test_invalid_parameters_raise(wrong, words):
    with pytest.raises(InputError, match=words):
        BatchingParameters(**wrong)
