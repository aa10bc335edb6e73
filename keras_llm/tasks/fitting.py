"""Train and evaluate a task on strings."""

import abc

import keras

from keras_llm import training
from keras_llm.errors import InputError


class Fitting(abc.ABC):
    """A mixin that adds `compile`, `fit` and `evaluate` to a task.

    A task implements `dataset` (rows to batches), `_objective` (the loss) and `_measure` (the
    evaluation).
    """

    _trainer = None

    def compile(self, optimizer=None, learning_rate=1e-3, weight_decay=0.01, **options):
        """Configure training. Calling it is optional: `fit` uses the defaults otherwise.

        Args:
            optimizer: a Keras optimizer or its name; None for AdamW with linear warmup over the
                first 5 % of the steps, cosine decay, and gradients clipped to norm 1.
            learning_rate, weight_decay: floats, options of the default AdamW.
            **options: other arguments of `keras.Model.compile`; `loss` and `metrics` default to
                those of the task.
        """
        self._compiled_with = (optimizer, learning_rate, weight_decay, options)
        self._trainer = None

    def fit(
        self,
        rows,
        validation_data=None,
        batch_size=32,
        epochs=1,
        seed=0,
        callbacks=None,
        verbose="auto",
        **options,
    ):
        """Train on strings.

        Args:
            rows: the training examples, see `dataset`.
            validation_data: held-out rows, or None.
            batch_size, epochs: ints > 0.
            seed: int, the seed for shuffling the rows.
            callbacks, verbose: see `keras.Model.fit`.
            **options: other arguments of `dataset`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            InputError: if the rows are invalid or fewer than one batch.
        """
        data = self.dataset(rows, batch_size, epochs, seed, **options)
        steps = len(data)
        if steps < epochs:
            raise InputError(
                f"`rows` must have at least one batch of {batch_size} rows, got {len(rows)} rows."
            )
        held_out = None
        if validation_data is not None:
            held_out = self.dataset(
                validation_data, min(batch_size, len(validation_data)), **options
            )
        if self._trainer is None:
            self._trainer = self._new_trainer(steps)
        return self._trainer.fit(
            data,
            steps_per_epoch=steps // epochs,
            epochs=epochs,
            validation_data=held_out,
            callbacks=callbacks,
            verbose=verbose,
        )

    def evaluate(self, rows, **options):
        """Evaluate the task on held-out rows.

        Args:
            rows: the held-out examples, see `dataset`.
            **options: options of the task, e.g. `sequence_length` of a `TextGeneration`.

        Returns:
            A dict of metrics and counts, from the task's evaluation in `keras_llm.training`.
        """
        return self._measure(rows, **options)

    @abc.abstractmethod
    def dataset(self, rows, batch_size=32, epochs=1, seed=None):
        """Convert rows to batches of the model's inputs and targets.

        Args:
            rows: list of training examples.
            batch_size: int > 0.
            epochs: int > 0, the number of passes over the rows.
            seed: int, to shuffle the rows differently in each epoch; None for no shuffling.

        Returns:
            A `tf.data.Dataset` with a known number of batches.
        """

    def _objective(self):
        """Return the `training.Trainer` and a dict of the loss and metrics to compile it with."""
        return training.LanguageModelTrainer(self.model, ignore_id=self.tokenizer.pad_id), {}

    @abc.abstractmethod
    def _measure(self, rows, **options):
        """Return a dict of metrics on held-out rows."""

    def _new_trainer(self, steps):
        default = (None, 1e-3, 0.01, {})
        optimizer, rate, decay, options = getattr(self, "_compiled_with", default)
        if optimizer is None:
            schedule = training.WarmupDecay(rate, steps, steps // 20)
            optimizer = training.AdamW(
                schedule, weight_decay=decay, beta_2=0.95, global_clipnorm=1.0
            )
        trainer, objective = self._objective()
        trainer.compile(optimizer, **{**objective, **options})
        return trainer


def classification_objective(task, **metrics):
    """Return a `Trainer` with cross-entropy loss and accuracy; see `Fitting._objective`."""
    return training.Trainer(task.model), {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        **metrics,
    }
