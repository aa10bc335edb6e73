"""Stop a request whose client has disconnected, also while its graph runs."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# The threads of the session may all be busy with the run to be stopped.
_IN_THIS_THREAD = tf.compat.v1.RunOptions(inter_op_thread_pool=-1)
_NUM_QUEUES = 256  # more concurrent runs than this cannot be stopped


class Cancellation:
    """An event that calls functions when it is set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._callbacks: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Set the event and call the functions."""
        with self._lock:
            self._is_set = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call a function when the event is set, or now if it is already."""
        with self._lock:
            if not self._is_set:
                self._callbacks.append(callback)
                return
        callback()

    def remove_callback(self, callback: Callable[[], object]) -> None:
        """Do not call a function any more."""
        with self._lock, contextlib.suppress(ValueError):
            self._callbacks.remove(callback)


class Stopper:
    """Ops that stop a run of a session from another thread.

    A session stops a run only if one of its ops fails. So each run has an op that waits for a value
    from a queue. The run itself sends the value when its outputs are computed; when a request is
    canceled, `stoppable` closes the queue, so that the op fails. The queue is an input of the run,
    so all runs of a signature share one graph.

    Args:
        session: `tf.compat.v1.Session`, whose graph is extended.
    """

    def __init__(self, session: tf.compat.v1.Session) -> None:
        self._session = session
        with session.graph.as_default(), tf.name_scope("keras_llm_stop"), tf.device("/cpu:0"):
            # A session cannot take a queue as an input, but a name of it.
            self._queues = [
                tf.raw_ops.FIFOQueueV2(
                    component_types=[tf.bool], shapes=[()], shared_name=f"keras_llm_stop_{i}"
                )
                for i in range(_NUM_QUEUES)
            ]
            self._names = [tf.raw_ops.GetSessionHandle(value=queue) for queue in self._queues]
            self.queue = tf.compat.v1.placeholder(tf.string, ())
            self._handle = tf.raw_ops.GetSessionTensor(handle=self.queue, dtype=tf.resource)
            self._received = tf.raw_ops.QueueDequeueV2(
                handle=self._handle, component_types=[tf.bool]
            )
            self._close = tf.raw_ops.QueueCloseV2(handle=self._handle)
            self._delete = tf.raw_ops.DestroyResourceOp(
                resource=self._handle, ignore_lookup_error=True
            )
        self._lock = threading.Lock()
        self._free: list[tuple[np.ndarray, tf.Operation]] = []  # names of queues, and their ops

    def targets(self, outputs: Sequence[tf.Tensor]) -> list[Any]:
        """Return the ops that a run with these outputs must include, as the C library's."""
        with (
            self._session.graph.as_default(),
            tf.name_scope("keras_llm_stop"),
            tf.device("/cpu:0"),
            # A control dependency on the call of a function without side effects has no effect.
            tf.control_dependencies(tf.raw_ops.IdentityN(input=outputs)),
        ):
            done = tf.raw_ops.QueueEnqueueV2(handle=self._handle, components=[tf.constant(True)])
            return [done._c_op, self._received[0].op._c_op]

    def start(self) -> None:
        """Create the queues, after the last call of `targets`."""
        names = [name._as_tf_output() for name in self._names]
        # `Session.run` would wrap the names in objects that delete what they name.
        names = self._session._call_tf_sessionrun(None, {}, names, [], None)
        self._free = [
            (np.array(name, object), queue.op)
            for name, queue in zip(names, self._queues, strict=True)
        ]
        # The first run of these ops takes longer, so do it now.
        self._run(self._close, self._free[0][0])
        self._renew(*self._free[0])

    @contextlib.contextmanager
    def stoppable(self, cancellation: Cancellation) -> Iterator[Any]:
        """Stop the run in this context when a request is canceled.

        Yields:
            The value of `queue` for the run; None if there are too many runs to stop this one.
        """
        with self._lock:
            queue, op = self._free.pop() if self._free else (None, None)
        if queue is None:
            yield None
            return
        lock, is_running = threading.Lock(), True

        def stop():
            with lock, contextlib.suppress(RuntimeError):  # the session is closed
                if is_running:  # else the queue may be that of another run
                    self._run(self._close, queue)

        cancellation.add_callback(stop)
        is_clean = False
        try:
            yield queue
            is_clean = True
        finally:
            with lock:
                is_running = False
            cancellation.remove_callback(stop)
            if not is_clean or cancellation.is_set():
                self._renew(queue, op)
            with self._lock:
                self._free.append((queue, op))

    def _renew(self, queue, op):
        """Replace a queue, which is closed or in which a value is left, by a new one."""
        with contextlib.suppress(tf.errors.OpError, RuntimeError):  # the session is closed
            self._run(self._delete, queue)
            self._run(op, queue)

    def _run(self, op, queue):
        self._session.run(op, {self.queue: queue}, options=_IN_THIS_THREAD)
