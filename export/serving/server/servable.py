"""One version of a model: a SavedModel in a session of TensorFlow's own, and what may be asked."""

import contextlib
import dataclasses
import importlib
import itertools
import pathlib
import re
import threading
import time

import tensorflow as tf

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import tensors

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_PREDICT = "tensorflow/serving/predict"
_SCHEMA = "__saved_model_init_op"  # of TensorFlow's loader, not for requests
_LONGEST_PREPARATION = 10.0  # seconds; longer is a request that takes long
_STATUS = {
    value: name for name, value in vars(tf.errors).items() if name.isupper() and name != "OK"
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a signature says of an input or output: its name in the graph, its DataType, and its
    shape, a list in which None is any size; None for any shape."""

    name: str
    dtype: int
    shape: list | None

    @property
    def has_batch(self):
        """Whether the first dimension may have any size."""
        return bool(self.shape) and self.shape[0] is None


@dataclasses.dataclass(frozen=True)
class Signature:
    """A signature of a SavedModel, by name; `defaults` has arrays for inputs left out."""

    name: str
    inputs: dict
    outputs: dict
    method_name: str
    defaults: dict = dataclasses.field(default_factory=dict)

    @property
    def has_batch(self):
        """Whether each input and output has rows, so that requests can be merged."""
        parts = [*self.inputs.values(), *self.outputs.values()]
        return bool(self.inputs) and all(part.has_batch for part in parts)

    def complete(self, arrays):
        """The arrays, and defaults for what they leave out."""
        return {**self.defaults, **arrays}

    def check(self, arrays):
        """Raise ServingError unless the arrays are what the inputs ask for."""
        missing, extra = (
            sorted(set(self.inputs) - set(arrays)),
            sorted(set(arrays) - {*self.inputs}),
        )
        if missing or extra:
            words = [f"missing {', '.join(missing)}"] if missing else []
            words += [f"unknown {', '.join(extra[:5])}"] if extra else []
            raise ServingError(
                "INVALID_ARGUMENT",
                f"inputs of signature {self.name}: {' and '.join(words)}; "
                f"it takes {', '.join(sorted(self.inputs))}.",
            )
        for name, array in arrays.items():
            wanted = self.inputs[name]
            dtype = tensors.numpy_dtype(wanted.dtype)
            if array.dtype != dtype:
                raise ServingError(
                    "INVALID_ARGUMENT",
                    f"input {name} must be {tensors.dtype_name(wanted.dtype)}, "
                    f"got {'DT_STRING' if array.dtype == object else array.dtype.name}.",
                )
            if wanted.shape is not None and not _fits(array.shape, wanted.shape):
                raise ServingError(
                    "INVALID_ARGUMENT",
                    f"input {name} must have shape {_shown(wanted.shape)}, "
                    f"got {_shown(array.shape)}.",
                )


class Servable:
    """A loaded SavedModel.

    Args:
        path: folder of one version.
        session_config: `tf.compat.v1.ConfigProto`, or None.
        tags: list of str, which graph of the SavedModel.

    Raises:
        ServingError: if it cannot be loaded.
    """

    def __init__(self, path, session_config=None, tags=("serve",)):
        _register_ops()
        self.path = pathlib.Path(path)
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=session_config)
        try:
            with graph.as_default(), _quiet():
                meta = tf.compat.v1.saved_model.load(self._session, list(tags), str(path))
        except Exception as error:
            self._session.close()
            raise _serving_error(error) from error
        self.signature_defs = {
            name: signature
            for name, signature in meta.signature_def.items()
            if name != _SCHEMA and signature.method_name
        }
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
        self._unprepared = {name: threading.Lock() for name in self.signatures}

    def signature(self, name, method=_PREDICT):
        """The signature of that name ("" is the default); ServingError if there is none that is
        meant for the method."""
        signature = self.signatures.get(name or DEFAULT_SIGNATURE)
        if signature is None:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"there is no signature {name or DEFAULT_SIGNATURE!r}; "
                f"known: {', '.join(sorted(self.signatures)) or 'none'}.",
            )
        if method != _PREDICT and signature.method_name != method:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"signature {signature.name} is for {signature.method_name}, not {method}.",
            )
        return signature

    def run(self, signature, arrays, deadline=None):
        """Run a signature.

        Args:
            signature: `Signature`.
            arrays: dict of input name to array, checked.
            deadline: `time.monotonic()` at which the answer is no longer wanted, or None.

        Returns:
            Dict of output name to array.

        Raises:
            ServingError: as the graph refuses, or "DEADLINE_EXCEEDED".
        """
        feeds = {signature.inputs[name].name: array for name, array in arrays.items()}
        fetches = {name: output.name for name, output in signature.outputs.items()}
        try:
            with self._prepared(signature.name, deadline):
                outputs = self._session.run(fetches, feeds, options=_run_options(deadline))
        except Exception as error:
            raise _serving_error(error) from error
        return {name: _rows_of_bytes(value) for name, value in outputs.items()}

    @contextlib.contextmanager
    def _prepared(self, name, deadline):
        """Let the first request of a signature go ahead: a session optimises the graph then, for
        seconds, and would do so once for each request that comes meanwhile."""
        lock = self._unprepared.get(name)
        patience = _LONGEST_PREPARATION
        if deadline is not None:
            patience = max(0.0, min(patience, deadline - time.monotonic()))
        is_locked = lock is not None and lock.acquire(timeout=patience)
        is_first = is_locked and name in self._unprepared
        if is_locked and not is_first:
            lock.release()
        try:
            yield
        finally:
            if is_first:
                self._unprepared.pop(name, None)
                lock.release()

    def close(self):
        """Free the session and its weights."""
        self._session.close()


def _run_options(deadline):
    """What stops a run at its deadline; ServingError if that has passed."""
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


def _fits(found, wanted):
    pairs = itertools.zip_longest(found, wanted, fillvalue=-1)
    return len(found) == len(wanted) and all(w is None or f == w for f, w in pairs)


def _shown(shape):
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _rows_of_bytes(value):
    """What a session returns, as an array; strings of no rank come as bytes."""
    import numpy as np

    if isinstance(value, bytes):
        scalar = np.empty((), object)
        scalar[()] = value
        return scalar
    return np.asarray(value)


def _serving_error(error):
    """The error of a session in one line: what the graph's check says, without the trace."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        message = error.message or type(error).__name__
        code = _STATUS.get(error.error_code, "UNKNOWN")
        return ServingError(code, _essence(message) or code)
    if isinstance(error, (InputError, ValueError, TypeError, OverflowError)):
        return ServingError("INVALID_ARGUMENT", str(error))
    return ServingError("INTERNAL", f"{type(error).__name__}: {error}")


def _essence(message):
    """The line of a message that says what is wrong: a check's own words if there is one."""
    if found := re.search(r"assertion failed: \[(.*)\]", message):
        return found[1]
    for line in message.splitlines():
        line = re.sub(r"^\s*(\(\d+\)\s*\w*:)?\s*", "", line)
        if line and not re.match(r"Graph execution error|Detected at|\d+ root error|\[\[", line):
            return line
    return ""


def _register_ops():
    """Load the ops of TensorFlow Text, which tokenizers in a graph need, where it is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow_text")


@contextlib.contextmanager
def _quiet():
    """Without the deprecation messages of the loader that TensorFlow Serving itself uses."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
