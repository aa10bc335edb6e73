"""Batch concurrent requests into one run of the graph."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving.server.cancellation import Cancellation
from keras_llm.export.serving.server.servable import Servable, Signature, canceled, out_of_memory


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """Batching parameters, with the names, meanings and defaults of TensorFlow Serving.

    Attributes:
        max_batch_size: int. Maximum number of rows in a batch.
        batch_timeout_micros: int. Maximum time that a request waits for others.
        max_enqueued_batches: int. Maximum number of waiting batches; further requests are rejected
            with UNAVAILABLE.
        num_batch_threads: int. Number of batches that run at the same time.
        allowed_batch_sizes: increasing tuple of int that ends with `max_batch_size`; a batch is
            padded to the next size with copies of its first row. Empty allows any size.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 2
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, field) < 1:
                raise InputError(f"`{field}` must be positive, got {getattr(self, field)}.")
        if self.batch_timeout_micros < 0:
            raise InputError(
                f"`batch_timeout_micros` must be >= 0, got {self.batch_timeout_micros}."
            )
        sizes = self.allowed_batch_sizes
        if sizes and (
            list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.max_batch_size
        ):
            raise InputError(
                "`allowed_batch_sizes` must increase and end with `max_batch_size` "
                f"({self.max_batch_size}), got {list(sizes)}."
            )


class Batcher:
    """A queue that batches requests for the same signature of the same servable.

    Args:
        parameters: `BatchingParameters`.
        observe: function that is called for each batch with the list of seconds that its requests
            waited and the number of rows.
    """

    def __init__(
        self,
        parameters: BatchingParameters,
        observe: Callable[[list[float], int], object] = lambda waits, rows: None,
    ) -> None:
        self._parameters = parameters
        self._observe = observe
        self._changed = threading.Condition()
        self._queues: dict[Any, list[_Task]] = {}  # oldest first
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True)
            for i in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self,
        servable: Servable,
        signature: Signature,
        arrays: dict[str, np.ndarray],
        deadline: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a request in a batch with others, or alone if it cannot be batched.

        Args:
            servable: `Servable`, which the caller keeps alive.
            signature: `Signature`.
            arrays: dict of input name to checked array. Numbers of length 1, such as generation
                settings, apply to all rows of a request.
            deadline: `time.monotonic()`, or None. A request that is still in the queue at that
                time is dropped.
            cancellation: `Cancellation` that is set when the client cancels the request, or None.
                A batch is stopped when all of its requests are canceled.

        Returns:
            A dict of output name to array.

        Raises:
            ServingError: if the request fails; "UNAVAILABLE" if the queue is full.
        """
        rows = rows_of(arrays) if signature.has_batch else None
        if rows is None:
            return servable.run(signature, arrays, deadline, cancellation)
        limit = self._parameters.max_batch_size
        if rows > limit:
            raise ServingError(
                "INVALID_ARGUMENT", f"{rows} rows exceed `max_batch_size` ({limit})."
            )
        inner = tuple(sorted((name, array.shape[1:]) for name, array in arrays.items()))
        key = (id(servable), signature.name, inner)
        task = _Task(servable, signature, arrays, rows, deadline, cancellation)
        with self._changed:
            if self._closed:
                raise ServingError("UNAVAILABLE", "the server is shutting down.")
            queue = self._queues.setdefault(key, [])
            waiting = sum(waits.rows for waits in queue) + rows
            if waiting > limit * self._parameters.max_enqueued_batches:
                raise ServingError("UNAVAILABLE", "the request queue is full.")
            queue.append(task)
            self._changed.notify()
        return task.wait()

    def close(self) -> None:
        """Run the waiting requests and stop the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self):
        while self._run_next():
            pass  # a separate frame for each batch, so that its arrays are freed while this waits

    def _run_next(self):
        """Wait for a batch and run it; return False after `close`."""
        tasks = self._next_batch()
        now = time.monotonic()
        live = []
        for task in tasks or []:
            if task.deadline is not None and task.deadline <= now:
                task.fail("DEADLINE_EXCEEDED", "the deadline passed in the queue.")
            elif task.is_canceled():
                error = canceled()
                task.fail(error.code, error.message)
            else:
                live.append(task)
        if live:
            waits = [now - task.since for task in live]
            self._observe(waits, sum(task.rows for task in live))
            self._run(live)
        return tasks is not None

    def _next_batch(self):
        """Wait for a queue that is due and return its tasks; None after `close`."""
        timeout = self._parameters.batch_timeout_micros / 1e6
        limit = self._parameters.max_batch_size
        with self._changed:
            while True:
                now, soonest = time.monotonic(), None
                for key, queue in self._queues.items():
                    is_full = sum(task.rows for task in queue) >= limit
                    due = queue[0].since + timeout
                    if is_full or due <= now or self._closed:
                        return self._take(key, limit)
                    soonest = due if soonest is None else min(soonest, due)
                if self._closed:
                    return None
                self._changed.wait(None if soonest is None else soonest - now)

    def _take(self, key, limit):
        queue = self._queues.pop(key)
        count = rows = 0
        while count < len(queue) and rows + queue[count].rows <= limit:
            rows += queue[count].rows
            count += 1
        if queue[count:]:
            self._queues[key] = queue[count:]  # moved to the end, so that other queues are next
            self._changed.notify()
        return queue[:count]

    def _run(self, tasks):
        first = tasks[0]
        deadlines = [task.deadline for task in tasks]
        deadline = None if None in deadlines else max(deadlines)
        try:
            rows = sum(task.rows for task in tasks)
            size = next((s for s in self._parameters.allowed_batch_sizes if s >= rows), rows)
            merged = _merged(tasks, size)
            with _all_canceled([task.cancellation for task in tasks]) as cancellation:
                outputs = first.servable.run(first.signature, merged, deadline, cancellation)
            if any(len(value) != size for value in outputs.values()):
                raise ServingError(
                    "INTERNAL", "an output has a different number of rows than the inputs."
                )
        except (ServingError, MemoryError) as error:
            if len(tasks) == 1:
                known = error if isinstance(error, ServingError) else out_of_memory()
                first.fail(known.code, known.message)
                del known  # its traceback refers to this frame
                return
            # Run the requests one by one, because the error may concern only one of them.
            for task in tasks:
                self._run([task])
            return
        except Exception as error:
            for task in tasks:
                task.fail("INTERNAL", f"{type(error).__name__}: {error}")
            return
        begin = 0
        for task in tasks:
            end = begin + task.rows
            task.finish({name: value[begin:end] for name, value in outputs.items()})
            begin = end


class _Task:
    """A request in a queue."""

    def __init__(
        self,
        servable: Servable,
        signature: Signature,
        arrays: dict[str, np.ndarray],
        rows: int,
        deadline: float | None,
        cancellation: Cancellation | None,
    ) -> None:
        self.servable = servable
        self.signature = signature
        self.arrays = arrays
        self.rows = rows
        self.deadline = deadline
        self.cancellation = cancellation
        self.since = time.monotonic()
        self._done = threading.Event()
        self._outputs: Any = None
        self._failure: tuple[str, str] | None = None

    def is_canceled(self) -> bool:
        return self.cancellation is not None and self.cancellation.is_set()

    def finish(self, outputs: dict[str, np.ndarray]) -> None:
        self._outputs = outputs
        self._done.set()

    def fail(self, code: str, message: str) -> None:
        # Do not store the error: its traceback refers to this task, and the cycle would keep the
        # request's arrays alive until the next garbage collection.
        self._failure = code, message
        self._done.set()

    def wait(self) -> dict[str, np.ndarray]:
        self._done.wait()
        if self._failure is not None:
            raise ServingError(*self._failure)
        return self._outputs


@contextlib.contextmanager
def _all_canceled(cancellations):
    """Yield a `Cancellation` that is set when all given ones are; None if one of them is None."""
    if None in cancellations:
        yield None
        return
    batch = Cancellation()

    def check():
        if all(cancellation.is_set() for cancellation in cancellations):
            batch.set()

    for cancellation in cancellations:
        cancellation.add_callback(check)
    try:
        yield batch
    finally:
        for cancellation in cancellations:
            cancellation.remove_callback(check)


def rows_of(arrays: dict[str, np.ndarray]) -> int | None:
    """Return the number of rows of a request, or None if it has none or its arrays disagree.

    If there are texts, they determine the number of rows; arrays of length 1 apply to all rows.
    """
    texts = {len(array) for array in arrays.values() if array.dtype == object}
    lengths = {len(array) for array in arrays.values()}
    rows = max(texts or lengths)
    return rows if rows > 0 and texts <= {rows} and lengths <= {1, rows} else None


def _merged(tasks, size):
    """Concatenate the arrays of all tasks and pad them to `size` rows."""
    merged = {}
    for name in tasks[0].arrays:
        parts = []
        for task in tasks:
            array = task.arrays[name]
            if array.shape[0] != task.rows:
                array = np.repeat(array, task.rows, axis=0)
            parts.append(array)
        rows = sum(map(len, parts))
        if size > rows:
            parts.append(np.repeat(parts[0][:1], size - rows, axis=0))
        merged[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return merged
