"""TensorBoard for language models."""

import math
import time

import keras
import tensorflow as tf


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, with what a language model is watched by.

    `batch_<name>`, every `update_freq` batches: the loss and each metric over just those
    batches, `perplexity`, `learning_rate` and `tokens_per_second`; `gradient_norm` and
    `skipped_updates` with an optimizer of `keras_llm.training`; and `flops_utilization` if the
    last two arguments are given. `epoch_<name>`: loss, metrics, perplexity and tokens per second
    of each epoch, of training and held-out data. `sample`: a text after each epoch. Counted in
    another `unit` than tokens there is no perplexity.

    Args:
        log_dir: str or path.
        tokens_per_step: int, tokens (or what `unit` says) in a batch.
        sample: callable without arguments that returns Markdown, or None.
        update_freq: int > 0, batches between two points.
        unit: str, what is counted.
        flops_per_token: float, floating point operations of a token's training step: 3 times
            `flops_per_token` and `attention_flops_per_token` of `models.summarize`.
        peak_flops: float, what the machine can do in a second.
        **kwargs: passed to `keras.callbacks.TensorBoard`.
    """

    def __init__(
        self,
        log_dir,
        tokens_per_step,
        sample=None,
        update_freq=20,
        unit="tokens",
        flops_per_token=None,
        peak_flops=None,
        **kwargs,
    ):
        kwargs.setdefault("write_graph", False)
        # Keras's own points within an epoch are averages since its beginning: they are off.
        super().__init__(log_dir=str(log_dir), update_freq="epoch", **kwargs)
        self.tokens_per_step = tokens_per_step
        self.sample = sample
        self.points_freq = update_freq
        self.unit = unit
        self.utilization = None
        if flops_per_token is not None and peak_flops is not None:
            self.utilization = flops_per_token / peak_flops  # at one token a second

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._batches = self._replayed = 0
        self._epoch_begin = time.perf_counter()
        self._last_point = (0, self._epoch_begin, {})

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self._batches += 1
        if getattr(self.model, "is_replaying", False):  # see `Resume`
            self._replayed = self._batches
            self._last_point = (self._batches, time.perf_counter(), dict(logs))
            return
        if self._batches % self.points_freq == 0:
            self._write_point(logs)
        # Validation comes after the last batch; it is no part of the training speed.
        self._epoch_end = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs = dict(logs or {})
        seconds = self._epoch_end - self._epoch_begin
        steps = self._batches - self._replayed
        logs[f"{self.unit}_per_second"] = steps * self.tokens_per_step / seconds
        for prefix in ("", "val_"):
            if self.unit == "tokens" and prefix + "loss" in logs:
                logs[prefix + "perplexity"] = _perplexity(logs[prefix + "loss"])
        super().on_epoch_end(epoch, logs)
        if self.sample is not None:
            with self._train_writer.as_default(epoch):
                tf.summary.text("sample", self.sample())

    def _write_point(self, logs):
        if hasattr(self.model, "jax_state_sync"):  # while JAX trains, variables are empty
            self.model.jax_state_sync()
        before, then, means = self._last_point
        now, count = time.perf_counter(), self._batches - before
        # Keras logs means since the epoch began; their difference is the mean since the point.
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
        if hasattr(optimizer, "gradient_norm"):
            values["gradient_norm"] = _number(optimizer.gradient_norm)
            values["skipped_updates"] = _number(optimizer.skipped)
        with self._train_writer.as_default(int(_number(optimizer.iterations))):
            for name, value in values.items():
                tf.summary.scalar(f"batch_{name}", value)


def _number(variable):
    return float(keras.ops.convert_to_numpy(variable))


def _perplexity(loss):
    return math.exp(min(float(loss), 700.0))
