"""Show training progress on stderr and save the best weights, on any backend."""

import atexit
import math
import pathlib
import time
from typing import Any

import keras
import rich.console
import rich.progress

from keras_llm.errors import InputError
from keras_llm.files import atomic_file
from keras_llm.training.distribution import replicas
from keras_llm.types import PathLike


class ProgressBar(keras.callbacks.Callback):
    """A progress bar on stderr, with one line per epoch.

    If stderr is not a terminal, only the lines are printed.

    Args:
        total_steps: int, number of batches of the whole training.
        tokens_per_step: int, tokens (or another `unit`) per batch.
        unit: str, what is counted. With "tokens" the line shows perplexity, otherwise the held-out
            accuracy if it is logged.
    """

    def __init__(self, total_steps: int, tokens_per_step: int, unit: str = "tokens") -> None:
        super().__init__()
        self.total_steps = total_steps
        self.tokens_per_step = tokens_per_step
        self.unit = unit
        self.console = rich.console.Console(stderr=True)
        self.progress = rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.TextColumn("{task.fields[state]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.begin = time.perf_counter()
        self.first = self.steps = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self.bar = self.progress.add_task(
            "training", total=self.total_steps, completed=self.steps, state=""
        )
        self.progress.start()
        atexit.register(self.progress.stop)  # restore the terminal if `fit` is interrupted

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | Any = None) -> None:
        if getattr(self.model, "is_replaying", False):  # see `Resume`
            return
        self.steps += 1
        self.progress.update(self.bar, advance=1, state=f"loss {logs['loss']:.3f}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | Any = None) -> None:
        seconds = time.perf_counter() - self.begin
        parts = [f"step {self.steps}/{self.total_steps}", f"loss {logs['loss']:.3f}"]
        if "val_loss" in logs:
            parts.append(f"held-out loss {logs['val_loss']:.3f}")
            if self.unit == "tokens":
                parts.append(f"perplexity {math.exp(min(logs['val_loss'], 700)):.1f}")
            elif "val_accuracy" in logs:
                parts.append(f"accuracy {logs['val_accuracy']:.3f}")
        speed = (self.steps - self.first) * self.tokens_per_step / seconds
        parts.append(f"{speed:.0f} {self.unit}/s")
        self.console.print("  ".join(parts), highlight=False, markup=False, soft_wrap=True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.progress.stop()
        atexit.unregister(self.progress.stop)


class BestWeights(keras.callbacks.Callback):
    """A callback that saves the weights with the lowest held-out loss.

    The file is written atomically. With several workers, only the first one writes.

    Args:
        path: str or path that ends in `.weights.h5`.
        monitor: str, the logged value to minimize.
        model: the model whose weights are saved; defaults to the model being trained.

    Attributes:
        best: float, the lowest value so far; infinite before the first finite one.
    """

    def __init__(
        self, path: PathLike, monitor: str = "val_loss", model: keras.Model | None = None
    ) -> None:
        super().__init__()
        self.path = pathlib.Path(path)
        self.kept_model = model
        self.monitor = monitor
        self.best = math.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | Any = None) -> None:
        if self.monitor not in logs:
            raise InputError(
                f"BestWeights: `monitor` {self.monitor!r} is not logged; logged are "
                f"{sorted(logs)}. Pass `validation_data` to `fit`, or another `monitor`."
            )
        if logs[self.monitor] < self.best:
            with replicas.scope_of(self.model):
                if replicas.is_chief():
                    with atomic_file(self.path, overwrite=True) as partial:
                        (self.kept_model or self.model).save_weights(partial)
            self.best = logs[self.monitor]

    def get_state(self) -> dict[str, float]:
        return {"best": self.best}

    def set_state(self, state: dict[str, float]) -> None:
        self.best = state["best"]
