"""Load a version of a model, a SavedModel, in a TensorFlow session and run its signatures."""

import contextlib
import dataclasses
import importlib
import itertools
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.client import pywrap_tf_session

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import tensors
from keras_llm.export.serving.server.cancellation import Cancellation, Stopper
from keras_llm.types import PathLike

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_PREDICT = "tensorflow/serving/predict"
_SCHEMA = "__saved_model_init_op"  # for TensorFlow's loader, not for requests
_LONGEST_PREPARATION = 10.0  # seconds; if it takes longer, the request itself is slow
_MIN_THREADS = 4  # of a session
_STATUS = {
    value: name for name, value in vars(tf.errors).items() if name.isupper() and name != "OK"
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a signature.

    Attributes:
        name: str, its name in the graph.
        dtype: int, a DataType.
        shape: list with None for any size; or None for any shape.
    """

    name: str
    dtype: int
    shape: list[int | None] | None

    @property
    def has_batch(self) -> bool:
        """Whether the first dimension may have any size."""
        return bool(self.shape and self.shape[0] is None)


@dataclasses.dataclass(frozen=True)
class Signature:
    """A signature of a SavedModel; `defaults` has the arrays of omitted inputs."""

    name: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    method_name: str
    defaults: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def has_batch(self) -> bool:
        """Whether requests can be batched: all inputs and outputs have a batch dimension."""
        parts = [*self.inputs.values(), *self.outputs.values()]
        return bool(self.inputs) and all(part.has_batch for part in parts)

    def complete(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays, with defaults for omitted inputs."""
        return {**self.defaults, **arrays}

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ServingError unless these are the names of the inputs; defaults may be omitted."""
        missing = sorted(set(self.inputs) - set(self.defaults) - set(names))
        extra = sorted(set(names) - set(self.inputs))
        if missing or extra:
            words = [f"missing {', '.join(missing)}"] if missing else []
            words += [f"unknown {', '.join(name[:100] for name in extra[:5])}"] if extra else []
            raise ServingError(
                "INVALID_ARGUMENT",
                f"inputs of signature {self.name}: {' and '.join(words)}; "
                f"it takes {', '.join(sorted(self.inputs))}.",
            )

    def check(self, arrays: dict[str, np.ndarray]) -> None:
        """Raise ServingError if names, dtypes or shapes of the arrays do not match the inputs."""
        self.check_names(arrays)
        for name, array in arrays.items():
            expected = self.inputs[name]
            dtype = tensors.numpy_dtype(expected.dtype)
            if array.dtype != dtype:
                raise ServingError(
                    "INVALID_ARGUMENT",
                    f"input {name} must be {tensors.dtype_name(expected.dtype)}, "
                    f"got {'DT_STRING' if array.dtype == object else array.dtype.name}.",
                )
            if expected.shape is not None and not _fits(array.shape, expected.shape):
                raise ServingError(
                    "INVALID_ARGUMENT",
                    f"input {name} must have shape {_shown(expected.shape)}, "
                    f"got {_shown(array.shape)}.",
                )


class Servable:
    """A loaded SavedModel.

    Args:
        path: folder of one version.
        session_config: `tf.compat.v1.ConfigProto`, or None.

    Raises:
        ServingError: if it cannot be loaded.
    """

    def __init__(self, path: PathLike, session_config: Any = None) -> None:
        _register_ops()
        self.path = pathlib.Path(path)
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=_with_threads(session_config))
        try:
            with graph.as_default(), _quiet():
                meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
            self.signature_defs = {
                name: signature
                for name, signature in meta.signature_def.items()
                if name != _SCHEMA and signature.method_name
            }
            self._stopper = Stopper(self._session)
            self._targets = {
                name: self._stopper.targets(list(map(self._tensor, signature.outputs.values())))
                for name, signature in self.signature_defs.items()
            }
            self._session._extend_graph()  # `Session.run` does this in each call
            self._stopper.start()
        except Exception as error:
            self._session.close()
            raise _serving_error(error) from error
        self.signatures = {
            name: Signature(
                name,
                {key: _tensor(info) for key, info in signature.inputs.items()},
                {key: _tensor(info) for key, info in signature.outputs.items()},
                signature.method_name,
                {key: tf.make_ndarray(proto) for key, proto in signature.defaults.items()},
            )
            for name, signature in self.signature_defs.items()
        }
        self._resolved: dict[str, tuple[dict[str, Any], list[Any]]] = {}
        self._unprepared = {name: threading.Lock() for name in self.signatures}

    def signature(self, name: str, method: str = _PREDICT) -> Signature:
        """Return a signature by name ("" is the default).

        Raises:
            ServingError: if it does not exist or does not support `method`.
        """
        signature = self.signatures.get(name or DEFAULT_SIGNATURE)
        if signature is None:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"there is no signature {name or DEFAULT_SIGNATURE!r}; "
                f"available: {', '.join(sorted(self.signatures)) or 'none'}.",
            )
        if method != _PREDICT and signature.method_name != method:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"signature {signature.name} is for {signature.method_name}, not {method}.",
            )
        return signature

    def run(
        self,
        signature: Signature,
        arrays: dict[str, np.ndarray],
        deadline: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            signature: `Signature`.
            arrays: dict of input name to checked array.
            deadline: `time.monotonic()` at which the run is aborted, or None.
            cancellation: `Cancellation` that aborts the run when it is set, or None.

        Returns:
            A dict of output name to array.

        Raises:
            ServingError: if the graph fails; "DEADLINE_EXCEEDED" after the deadline, and
                "CANCELLED" if the request is canceled.
        """
        cancellation = cancellation or Cancellation()  # all runs share one optimized graph
        try:
            with (
                self._prepared(signature.name, deadline),
                self._stopper.stoppable(cancellation) as queue,
            ):
                values = self._run_session(signature, arrays, _run_options(deadline), queue)
        except Exception as error:
            if cancellation.is_set():
                raise canceled() from error
            raise _serving_error(error) from error
        return {
            name: _rows_of_bytes(value)
            for name, value in zip(signature.outputs, values, strict=True)
        }

    def _run_session(self, signature, arrays, options, queue):
        """Run the session and return the outputs in the order of the signature.

        `Session.run` resolves all names in each call, which takes longer than a small graph.
        """
        if signature.name not in self._resolved:
            self._resolved[signature.name] = (
                {name: self._tensor(i)._as_tf_output() for name, i in signature.inputs.items()},
                [self._tensor(info)._as_tf_output() for info in signature.outputs.values()],
            )
        inputs, fetches = self._resolved[signature.name]
        feeds = {inputs[name]: array for name, array in arrays.items()}
        targets = []
        if queue is not None:
            feeds[self._stopper.queue._as_tf_output()] = queue
            targets = self._targets[signature.name]
        buffer = None
        if options is not None:
            buffer = pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
        try:
            return self._session._call_tf_sessionrun(buffer, feeds, fetches, targets, None)
        finally:
            if buffer is not None:
                pywrap_tf_session.TF_DeleteBuffer(buffer)

    def _tensor(self, info):
        return self._session.graph.get_tensor_by_name(info.name)

    @contextlib.contextmanager
    def _prepared(self, name, deadline):
        """Run the first request of a signature alone.

        The session optimizes the graph in the first run, which takes seconds, and would do so for
        each concurrent request.
        """
        lock = self._unprepared.get(name)
        timeout = _LONGEST_PREPARATION
        if deadline is not None:
            timeout = max(0.0, min(timeout, deadline - time.monotonic()))
        is_locked = lock is not None and lock.acquire(timeout=timeout)
        is_first = is_locked and name in self._unprepared
        if is_locked and not is_first:
            lock.release()
        try:
            yield
        finally:
            if is_first:
                self._unprepared.pop(name, None)
                lock.release()

    def close(self) -> None:
        """Free the session and its weights."""
        self._session.close()


def _with_threads(config):
    """Return a session configuration with threads of its own.

    A loop in a graph occupies a thread, so there are several even on a machine with one core: else
    the op that stops a run would not be started.
    """
    own = tf.compat.v1.ConfigProto()
    if config is not None:
        own.CopyFrom(config)
    own.use_per_session_threads = True
    if not own.inter_op_parallelism_threads:
        own.inter_op_parallelism_threads = max(_MIN_THREADS, os.cpu_count() or 1)
    return own


def canceled() -> ServingError:
    """Return the error of a request whose client has disconnected."""
    return ServingError("CANCELLED", "the client canceled the request.")


def out_of_memory() -> ServingError:
    """Return the error of a request for which there is not enough memory."""
    return ServingError("RESOURCE_EXHAUSTED", "there is not enough memory for the request.")


def _run_options(deadline):
    """Return the options that abort a run at its deadline; ServingError if it has passed."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise ServingError("DEADLINE_EXCEEDED", "the deadline has passed.")
    return tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(left * 1000)))


def _tensor(info):
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]
    return Tensor(info.name, info.dtype, shape)


def _fits(shape, expected):
    pairs = itertools.zip_longest(shape, expected, fillvalue=-1)
    return len(shape) == len(expected) and all(e is None or size == e for size, e in pairs)


def _shown(shape):
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _rows_of_bytes(value):
    """Convert an output of a session to an array; scalar strings are bytes."""
    if isinstance(value, bytes):
        scalar = np.empty((), object)
        scalar[()] = value
        return scalar
    return np.asarray(value)


def _serving_error(error):
    """Convert an error of a session to a ServingError with a message of one line."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        message = error.message or type(error).__name__
        code = _STATUS.get(error.error_code, "UNKNOWN")
        return ServingError(code, _essence(message) or code)
    if isinstance(error, MemoryError):
        return out_of_memory()
    if isinstance(error, (InputError, ValueError, TypeError, OverflowError)):
        return ServingError("INVALID_ARGUMENT", str(error))
    return ServingError("INTERNAL", f"{type(error).__name__}: {error}")


def _essence(message):
    """Return the line of a message with the cause, or the message of a failed assertion."""
    if match := re.search(r"assertion failed: \[(.*)\]", message):
        return match[1]
    for line in message.splitlines():
        line = re.sub(r"^\s*(\(\d+\)\s*\w*:)?\s*", "", line)
        if line and not re.match(r"Graph execution error|Detected at|\d+ root error|\[\[", line):
            return line
    return ""


def _register_ops():
    """Load the ops of TensorFlow Text, which tokenizers in a graph use, if it is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow_text")


@contextlib.contextmanager
def _quiet():
    """Suppress the deprecation warnings of the loader, which TensorFlow Serving uses, too."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
