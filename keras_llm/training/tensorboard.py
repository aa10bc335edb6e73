"""TensorBoard for language models."""

import math
import time

import keras
import tensorflow as tf


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, with what a language model is watched by.

    Besides loss and metrics it writes `perplexity`, `learning_rate` and `tokens_per_second`,
    for each epoch and every `update_freq` batches, and a sampled text after each epoch.

    Args:
        log_dir: str or path.
        tokens_per_step: int, tokens in a batch.
        sample: callable without arguments that returns Markdown, or None.
        update_freq: int, batches between two points, or "epoch".
        **kwargs: passed to `keras.callbacks.TensorBoard`.
    """

    def __init__(self, log_dir, tokens_per_step, sample=None, update_freq=20, **kwargs):
        kwargs.setdefault("write_graph", False)
        super().__init__(log_dir=str(log_dir), update_freq=update_freq, **kwargs)
        self.tokens_per_step = tokens_per_step
        self.sample = sample

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._batch_begin = self._epoch_begin = time.perf_counter()
        self._batches_since = self._batches = 0

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self._batches += 1
        self._batches_since += 1
        if isinstance(self.update_freq, int) and self._batches_since == self.update_freq:
            now = time.perf_counter()
            speed = self._batches_since * self.tokens_per_step / (now - self._batch_begin)
            step = int(self.model.optimizer.iterations)
            with self._train_writer.as_default(step):
                tf.summary.scalar("batch_perplexity", _perplexity(logs["loss"]))
                tf.summary.scalar("batch_learning_rate", self._learning_rate())
                tf.summary.scalar("batch_tokens_per_second", speed)
            self._batch_begin, self._batches_since = now, 0
        # Validation comes after the last batch; it is no part of the training speed.
        self._epoch_end = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs = dict(logs or {})
        seconds = self._epoch_end - self._epoch_begin
        logs["tokens_per_second"] = self._batches * self.tokens_per_step / seconds
        for prefix in ("", "val_"):
            if prefix + "loss" in logs:
                logs[prefix + "perplexity"] = _perplexity(logs[prefix + "loss"])
        super().on_epoch_end(epoch, logs)
        if self.sample is not None:
            with self._train_writer.as_default(epoch):
                tf.summary.text("sample", self.sample())

    def _learning_rate(self):
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))


def _perplexity(loss):
    return math.exp(min(float(loss), 700.0))
