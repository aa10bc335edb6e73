"""Resume an interrupted training run bit-exactly from its last checkpoint."""

import concurrent.futures
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_llm.errors import InputError
from keras_llm.keras_internals import set_initial_epoch
from keras_llm.training.callbacks import checkpoint_files
from keras_llm.training.distribution import replicas
from keras_llm.types import JSON, Dataset, PathLike

# The attributes that Keras callbacks keep between epochs.
_KERAS_STATES = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}


class Resume(keras.callbacks.Callback):
    """A callback that writes checkpoints during `fit` and resumes bit-exactly from the last one.

    A run that is killed at any time and restarted with the same arguments ends with the same bits
    as an uninterrupted one: weights, optimizer, dropout, metrics and history. Pass it as the last
    callback, pass the data through `data`, and set `steps_per_epoch`:

        resume = training.Resume("runs/mine/checkpoints", every=200)
        model.fit(
            resume.data(batches), steps_per_epoch=1000, epochs=5, callbacks=[..., resume]
        )
        resume.history  # of the whole run

    A checkpoint is one file, `step_<n>.checkpoint.npz`. A background thread writes it under a
    temporary name and renames it when it is complete. The arrays have checksums; a corrupt
    checkpoint is skipped with a warning, and the one before it is used. Supports the TensorFlow and
    JAX backends.

    Under a `tf.distribute` strategy the state of all replicas is saved. With several workers, the
    first one writes and all read: `folder` must be shared, and all workers must be restarted
    together.

    Args:
        folder: str or path for the checkpoints; created if missing.
        every: int > 0, steps between checkpoints. Each epoch also ends with a checkpoint.
        keep: int > 0, the number of checkpoints to keep.
        identity: dict of JSON values that must be the same when the run resumes, e.g. options. The
            configs of model and optimizer and a digest of the first batch are added.
        callbacks: list of other callbacks whose state is saved: `BestWeights`, Keras's
            `EarlyStopping` and `ReduceLROnPlateau`, and any callback with the methods `get_state()`
            and `set_state(state)` that use JSON types.

    Attributes:
        history: dict of lists, like `keras.callbacks.History.history`, for the whole run.
        seconds: float, time spent in `fit` over the whole run.

    Raises:
        InputError: if an argument is invalid, naming it. In `fit`: if the checkpoint was made with
            another model, optimizer, data or identity, naming the difference; if the data did not
            go through `data` or `steps_per_epoch` is not set; if workers found different
            checkpoints; or if a loss or weight is not finite (the last good checkpoint is kept).
    """

    _loaded: checkpoint_files.Checkpoint | None
    _last_good: pathlib.Path | None
    _length: int | Any
    _epoch: int | Any

    def __init__(
        self,
        folder: PathLike,
        every: int = 100,
        keep: int = 2,
        identity: JSON | None = None,
        callbacks: Iterable[keras.callbacks.Callback] = (),
    ) -> None:
        super().__init__()
        if keras.backend.backend() not in ("tensorflow", "jax"):
            raise InputError("training.Resume requires Keras's TensorFlow or JAX backend.")
        for name, value in (("every", every), ("keep", keep)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"`{name}` must be a positive int, got {value!r}.")
        self.folder = pathlib.Path(folder)
        self.every, self.keep = every, keep
        self.callbacks = [_Stateful(callback) for callback in callbacks]
        self.identity = dict(identity or {})
        try:
            json.dumps(self.identity)
        except TypeError as error:
            raise InputError(f"`identity` must hold JSON values: {error}.") from None
        self.history: dict[str, list[float]] = {}
        self.seconds = 0.0
        self._loaded, self._last_good = checkpoint_files.latest(self.folder)
        self._batch = self._first_batch = self._length = self._own = None
        self._is_over = False
        self._writer = concurrent.futures.ThreadPoolExecutor(1)
        self._writing = None

    @property
    def step(self) -> int:
        """The step of the checkpoint that the run resumes from; 0 for a new run."""
        return self._loaded.meta["step"] if self._loaded else 0

    def data(self, source: Dataset | Callable[[int], Dataset]) -> Dataset:
        """Return the data for `fit`, starting at the step where the run resumes.

        Args:
            source: a deterministic `tf.data.Dataset` with the batches of all epochs in sequence; or
                a function that takes the number of batches to skip, an int, and returns the rest.

        Returns:
            `tf.data.Dataset` for `fit`.
        """
        whole = source(0) if callable(source) else source
        first = whole.take(1)
        on_tensorflow = keras.backend.backend() == "tensorflow"
        self._batch = next(iter(first) if on_tensorflow else first.as_numpy_iterator())
        self._first_batch = _digest(self._batch)
        self._length = int(whole.cardinality())
        if not self.step:
            return whole
        rest = source(self.step) if callable(source) else whole.skip(self.step)
        if not rest.cardinality():  # the run is complete, but Keras still reads the first batch
            return whole
        # Keras also counts the skipped steps, so it must not see the cardinality of the rest:
        # `filter` makes it unknown.
        return rest.filter(lambda *_: True)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        with replicas.scope_of(model):
            self._set_model(model)

    def _set_model(self, model):
        replicas.check_same(self.step, f"the step of the last checkpoint in {self.folder}")
        if replicas.is_chief():
            checkpoint_files.clear_unfinished(self.folder)
        if self._first_batch is None:
            raise InputError("pass the data of `fit` through `resume.data(...)`.")
        if self._is_over:
            raise InputError("create a new `training.Resume` for each `fit`.")
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._own = self._identity()  # compute it now: callbacks may change the learning rate
        if self._loaded is None:
            return
        checkpoint = self._loaded
        _check_identity({"replicas": 1, **checkpoint.meta["identity"]}, self._own)
        # Create the variables of metrics before they are restored.
        model.test_on_batch(*keras.utils.unpack_x_y_sample_weight(self._batch))
        _check_shapes(checkpoint, _variables(model))
        checkpoint.restore(_variables(model))
        self.seconds = checkpoint.meta["seconds"]
        set_initial_epoch(model, checkpoint.meta["epoch"])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._steps = self.params.get("steps")
        if not self._steps:
            raise InputError("training.Resume: pass `steps_per_epoch` to `fit`.")
        required = self._steps * self.params["epochs"]
        if 0 <= self._length < required:
            raise InputError(
                f"the data of `fit` has {self._length} batches, but `epochs` times "
                f"`steps_per_epoch` are {required}: training.Resume needs the batches of all "
                "epochs in sequence, e.g. `batches.repeat(epochs)`."
            )
        self._begin, self._epoch, self._replayed = time.perf_counter(), None, 0
        if self._loaded is None:
            return
        meta = self._loaded.meta
        _check_identity(
            {"steps_per_epoch": meta["steps_per_epoch"]}, {"steps_per_epoch": self._steps}
        )
        kinds = [callback.kind for callback in self.callbacks]
        _check_identity({"callbacks": meta["callback_kinds"]}, {"callbacks": kinds})
        for callback, state in zip(self.callbacks, meta["callbacks"], strict=True):
            callback.set(state)
        self.history = meta["history"]
        self.model.history.history = {k: list(v) for k, v in self.history.items()}
        self._replayed = meta["step_in_epoch"]
        if self._replayed:
            self._replay(meta["logs"])
        if meta["is_stopped"]:
            set_initial_epoch(self.model, self.params["epochs"])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._loaded is not None and self._epoch is None:
            if epoch != self._loaded.meta["epoch"]:
                raise InputError(
                    f"`fit` must resume at epoch {self._loaded.meta['epoch']}, not {epoch}."
                )
            # Keras has just reset the metrics, but they must include the steps of this epoch that
            # are already done. At the start of an epoch there are none: the saved metrics are those
            # of the evaluation.
            if self._replayed:
                with replicas.scope_of(self.model):
                    self._loaded.restore(_variables(self.model))
            self._loaded = self._loaded.without_arrays()
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | Any = None) -> None:
        step = batch + 1
        if step <= self._replayed:
            return
        self._replayed = 0
        done = self._epoch * self._steps + step
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"the loss is not finite after step {done}; try a lower learning rate."
                f"{self._last_good_message()}"
            )
        if step < self._steps and done % self.every < self.model.steps_per_execution:
            self._save(self._epoch, step, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | Any = None) -> None:
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        self._save(epoch + 1, 0, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self._begin
        set_initial_epoch(self.model, None)
        self._loaded, self._is_over = None, True

    def _replay(self, logs):
        """Make `fit` skip the steps of this epoch that are already done."""
        model = self.model
        left, run = self._replayed // model.steps_per_execution, model.train_function

        def train_function(*args):
            nonlocal left
            if not left:
                model.train_function, model.is_replaying = run, False
                return run(*args)
            left -= 1
            return logs if len(args) == 1 else (logs, args[0])  # JAX passes the state too

        model.train_function, model.is_replaying = train_function, True

    def _identity(self):
        row = {
            **self.identity,
            "model": _without_names(self.model.get_config()),
            "optimizer": _without_names(keras.saving.serialize_keras_object(self.model.optimizer)),
            "loss": _without_names(keras.saving.serialize_keras_object(self.model.loss)),
            "first_batch": self._first_batch,
            "replicas": replicas.count(),
        }
        return json.loads(json.dumps(row, default=lambda value: type(value).__name__))

    def _save(self, epoch, step_in_epoch, logs):
        """Copy the state and write it in a background thread while training continues."""
        self._wait()
        if hasattr(self.model, "jax_state_sync"):  # during JAX training, variables are empty
            self.model.jax_state_sync()
        with replicas.scope_of(self.model):
            arrays = replicas.read(_variables(self.model))
            if not replicas.is_chief():
                return
        step = epoch * self._steps + step_in_epoch
        meta = {
            "step": step,
            "epoch": epoch,
            "step_in_epoch": step_in_epoch,
            "steps_per_epoch": self._steps,
            "logs": {name: float(value) for name, value in logs.items()},
            "history": self.history,
            "is_stopped": bool(self.model.stop_training),
            "callbacks": [callback.get() for callback in self.callbacks],
            "callback_kinds": [callback.kind for callback in self.callbacks],
            "identity": self._own,
            "seconds": self.seconds + time.perf_counter() - self._begin,
        }
        self._writing = self._writer.submit(self._write, step, json.dumps(meta), arrays)

    def _write(self, step, meta, arrays):
        floats = [array for array in arrays if array.dtype.kind in "fV"]
        if not all(np.isfinite(array).all() for array in floats):
            raise InputError(
                f"a weight is not finite after step {step}; try a lower learning rate."
                f"{self._last_good_message()}"
            )
        path = checkpoint_files.path_of(self.folder, step)
        checkpoint_files.Checkpoint(meta, arrays).write(path)
        self._last_good = path
        # Newer files are corrupt: they do not count, and this run overwrites them later.
        older = [other for other in checkpoint_files.paths(self.folder) if other <= path]
        for other in older[self.keep :]:
            other.unlink()

    def _wait(self):
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _last_good_message(self):
        return f" The last good checkpoint is {self._last_good}." if self._last_good else ""


class _Stateful:
    """A callback whose state is saved in checkpoints."""

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        self.callback = callback
        self.kind = type(callback).__name__
        kinds = [kind for kind in _KERAS_STATES if isinstance(callback, kind)]
        self.names = _KERAS_STATES[kinds[0]] if kinds else None
        if self.names is None and not hasattr(callback, "get_state"):
            raise InputError(f"`callbacks`: {type(callback).__name__} has no method `get_state`.")
        if getattr(callback, "restore_best_weights", False):
            raise InputError(
                "`callbacks`: EarlyStopping with `restore_best_weights` is not supported; use "
                "BestWeights."
            )

    def get(self) -> JSON:
        if self.names is None:
            return self.callback.get_state()
        return {name: getattr(self.callback, name, None) for name in self.names}

    def set(self, state: JSON) -> None:
        if self.names is None:
            self.callback.set_state(state)
        else:
            for name, value in state.items():
                setattr(self.callback, name, value)


def _variables(model):
    """Return each variable once: weights, dropout seeds, optimizer, metrics."""
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable for variable in variables}.values())


def _digest(batch):
    digest = hashlib.blake2b(digest_size=16)
    for part in keras.tree.flatten(batch):
        part = np.asarray(part)
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _without_names(config):
    """Return a config without the names that Keras numbers per process and references to them."""
    if isinstance(config, (list, tuple)):
        return [_without_names(part) for part in config]
    if not isinstance(config, dict):
        return config
    numbered = ("name", "inbound_nodes", "input_layers", "output_layers")
    return {key: _without_names(part) for key, part in config.items() if key not in numbered}


def _check_identity(before, now, path=""):
    """Raise InputError naming the first value that differs."""
    for name in [*now, *(before.keys() - now.keys())]:
        old, new = before.get(name), now.get(name)
        where = f"{path}{name}"
        if isinstance(old, dict) and isinstance(new, dict):
            _check_identity(old, new, f"{where}.")
        elif old != new:
            raise InputError(
                f"the checkpoint was made with {where}={old!r}, this run has {new!r}; use the same "
                "value to resume, or another folder to start a new run."
            )


def _check_shapes(checkpoint, variables):
    shapes = [list(array.shape) for array in checkpoint.arrays]
    expected = [replicas.shape(variable) for variable in variables]
    if shapes != expected:
        _check_identity({"shapes": shapes}, {"shapes": expected})
