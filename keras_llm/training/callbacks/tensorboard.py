"""Log language model training to TensorBoard."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.keras_internals import train_writer
from keras_llm.types import Dataset, PathLike, Tensor

_ZOOM = 4  # attention images: pixels per token in each direction


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback with more values for language models.

    Logs `batch_<name>` every `update_freq` batches: the loss and each metric over just those
    batches, `perplexity`, `learning_rate` and `tokens_per_second`; with an optimizer of
    `keras_llm.training`, `gradient_norm` and `skipped_updates`; if both `flops_per_token` and
    `peak_flops` are given, `flops_utilization`; and if the data goes through `data`,
    `data_seconds` and `compute_seconds`, the time per step spent waiting for the batch and spent
    computing. Logs `epoch_<name>` after each epoch: loss, metrics, perplexity and tokens per
    second, for training and validation data. Logs `sample`, a text, after each epoch. Perplexity is
    only logged if `unit` is "tokens".

    Args:
        log_dir: str or path.
        tokens_per_step: int, tokens (or another `unit`) per batch.
        sample: callable without arguments that returns Markdown, or None.
        update_freq: int > 0, batches between points.
        unit: str, what is counted.
        flops_per_token: float, floating-point operations per token of a training step: 3 times
            `flops_per_token` and `attention_flops_per_token` of `models.summarize`.
        peak_flops: float, floating-point operations per second of the hardware.
        attention: dict of a model's inputs by name, arrays with one row, or None. Before training
            and after each epoch, images `attention/block_<i>` show the attention weights, heads
            side by side (see `models.attention_maps`), as the square root of their share of the
            largest one. Each costs a forward pass of the row.
        projector: list of str, labels of the first tokens of the vocabulary, or None. After
            training, their embeddings are written for the projector.
        **kwargs: passed to `keras.callbacks.TensorBoard`, e.g. `profile_batch=(5, 8)`, the batches
            to trace with TensorFlow's profiler.

    Raises:
        InputError: in `fit`, if there are more labels than tokens, or the model has no attention.
    """

    def __init__(
        self,
        log_dir: PathLike,
        tokens_per_step: int,
        sample: Callable[[], str] | None = None,
        update_freq: int = 20,
        unit: str = "tokens",
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        attention: dict[str, Tensor] | None = None,
        projector: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("write_graph", False)
        # "epoch" turns off Keras's own batch-level points, which are averages since the epoch
        # began.
        super().__init__(log_dir=str(log_dir), update_freq="epoch", **kwargs)
        self.tokens_per_step = tokens_per_step
        self.sample = sample
        self.points_freq = update_freq
        self.unit = unit
        self.attention, self.projector = attention, projector
        self._arrived = None
        self.utilization = None
        if flops_per_token is not None and peak_flops is not None:
            self.utilization = flops_per_token / peak_flops  # at one token per second

    def data(self, dataset: Dataset) -> Dataset:
        """Return the data for `fit`, recording when each batch arrives.

        Args:
            dataset: `tf.data.Dataset`. If the model's `steps_per_execution` is above 1, only the
                arrival of the last batch of each execution is recorded.

        Returns:
            A `tf.data.Dataset` of the same batches.
        """
        self._arrived = tf.Variable(0.0, dtype="float64", trainable=False)

        def arrive(*batch):
            self._arrived.assign(tf.timestamp())
            return batch if len(batch) > 1 else batch[0]

        # Without this option, prefetching would record the time before `fit` requests the batch.
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return dataset.prefetch(tf.data.AUTOTUNE).map(arrive).with_options(options)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        inner = getattr(self.model, "model", self.model)  # unwrap a trainer
        self._watched = inner if isinstance(inner, keras.Model) else self.model
        if self.projector is not None:
            size = self._watched.config.vocabulary_size
            if len(self.projector) > size:
                raise InputError(
                    f"`projector` has {len(self.projector)} labels, but the vocabulary has only "
                    f"{size} tokens."
                )
        self._write_attention()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.projector is not None:
            self._write_projector()
        super().on_train_end(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._waited = self._computed = 0.0
        self._batches = self._replayed = 0
        self._epoch_begin = time.perf_counter()
        self._last_point: tuple[int, float, dict[str, Any]] = (0, self._epoch_begin, {})

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_begin(batch, logs)
        self._requested = time.time()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | Any = None) -> None:
        if self._arrived is not None and not getattr(self.model, "is_replaying", False):
            arrived = float(self._arrived)
            self._waited += arrived - self._requested
            self._computed += time.time() - arrived
        super().on_train_batch_end(batch, logs)
        self._batches += 1
        if getattr(self.model, "is_replaying", False):  # see `Resume`
            self._replayed = self._batches
            self._last_point = (self._batches, time.perf_counter(), dict(logs))
            return
        if self._batches % self.points_freq == 0:
            self._write_point(logs)
        # Validation runs after the last batch and must not count toward training speed.
        self._epoch_end = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = dict(logs or {})
        seconds = self._epoch_end - self._epoch_begin
        steps = self._batches - self._replayed
        logs[f"{self.unit}_per_second"] = steps * self.tokens_per_step / seconds
        for prefix in ("", "val_"):
            if self.unit == "tokens" and prefix + "loss" in logs:
                logs[prefix + "perplexity"] = _perplexity(logs[prefix + "loss"])
        super().on_epoch_end(epoch, logs)
        if self.sample is not None:
            with train_writer(self).as_default(int(_number(self.model.optimizer.iterations))):
                tf.summary.text("sample", self.sample())
        self._write_attention()

    def _write_point(self, logs):
        if hasattr(self.model, "jax_state_sync"):  # during JAX training, variables are empty
            self.model.jax_state_sync()
        before, then, means = self._last_point
        now, count = time.perf_counter(), self._batches - before
        # Keras logs means since the epoch began; convert them to means since the last point.
        values = {
            name: (mean * self._batches - means.get(name, 0.0) * before) / count
            for name, mean in logs.items()
        }
        self._last_point = (self._batches, now, dict(logs))
        if self.unit == "tokens":
            values["perplexity"] = _perplexity(values["loss"])
        optimizer = self.model.optimizer
        values["learning_rate"] = _number(optimizer.learning_rate)
        speed = count * self.tokens_per_step / (now - then)
        values[f"{self.unit}_per_second"] = speed
        if self.utilization is not None:
            values["flops_utilization"] = speed * self.utilization
        if self._arrived is not None:
            values["data_seconds"] = self._waited / count
            values["compute_seconds"] = self._computed / count
            self._waited = self._computed = 0.0
        if hasattr(optimizer, "gradient_norm"):
            values["gradient_norm"] = _number(optimizer.gradient_norm)
            values["skipped_updates"] = _number(optimizer.skipped)
        with train_writer(self).as_default(int(_number(optimizer.iterations))):
            for name, value in values.items():
                tf.summary.scalar(f"batch_{name}", value)

    def _write_attention(self):
        if self.attention is None:
            return
        maps = models.attention_maps(self._watched, self.attention)
        with train_writer(self).as_default(int(_number(self.model.optimizer.iterations))):
            for i, heads in enumerate(maps):
                # The square root of the share of the largest weight makes small ones visible.
                heads = np.sqrt(np.asarray(heads)[0] / np.max(heads))
                heads = np.pad(heads, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)
                image = np.kron(np.hstack(heads), np.ones((_ZOOM, _ZOOM), "float32"))
                tf.summary.image(f"attention/block_{i}", image[None, :, :, None])

    def _write_projector(self):
        folder, count = tf.io.gfile.join(self.log_dir, "train"), len(self.projector)
        labels = [json.dumps(label, ensure_ascii=False)[1:-1] for label in self.projector]
        vectors = models.token_table(self._watched)[:count]
        rows = ["\t".join(f"{value:.6g}" for value in row) for row in vectors]
        files = {
            "token_labels.tsv": "\n".join(labels) + "\n",
            "token_embedding.tsv": "\n".join(rows) + "\n",
            "projector_config.pbtxt": (
                'embeddings {\n  tensor_name: "token_embedding"\n'
                '  tensor_path: "token_embedding.tsv"\n  metadata_path: "token_labels.tsv"\n}\n'
            ),
        }
        tf.io.gfile.makedirs(folder)
        for name, text in files.items():
            with tf.io.gfile.GFile(tf.io.gfile.join(folder, name), "w") as file:
                file.write(text)


def _number(variable):
    return float(keras.ops.convert_to_numpy(variable))


def _perplexity(loss):
    return math.exp(min(float(loss), 700.0))
