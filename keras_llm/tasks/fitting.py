"""Train and evaluate a task on strings."""

import abc

import keras

from keras_llm import training
from keras_llm.errors import InputError


class Fitting(abc.ABC):
    """`compile`, `fit` and `evaluate` of a task.

    A task says how its rows become batches (`dataset`), what it minimizes (`_objective`) and how
    well it does on rows (`_measure`).
    """

    _trainer = None

    def compile(self, optimizer=None, learning_rate=1e-3, weight_decay=0.01, **options):
        """Choose the optimizer of `fit`, which otherwise chooses these defaults itself.

        Args:
            optimizer: a Keras optimizer or its name; None for AdamW whose learning rate warms up
                over the first 5 % of the steps and decays by a cosine, with gradients clipped to
                norm 1.
            learning_rate, weight_decay: floats, of that AdamW.
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
            rows: what `dataset` takes.
            validation_data: rows that are held out, or None.
            batch_size, epochs: ints > 0.
            seed: int, the order of the rows.
            callbacks, verbose: as of `keras.Model.fit`.
            **options: other arguments of `dataset`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            InputError: naming what is wrong with the rows.
        """
        data = self.dataset(rows, batch_size, epochs, seed, **options)
        steps = len(data)
        if steps < epochs:
            raise InputError(f"{len(rows)} rows are less than a batch of {batch_size}.")
        held_out = None
        if validation_data is not None:
            held_out = self.dataset(validation_data, min(batch_size, len(validation_data)), **options)
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
        """Measure the task on held-out rows.

        Args:
            rows: what `dataset` takes.
            **options: of the task, e.g. `sequence_length` of a `TextGeneration`.

        Returns:
            A dict of floats and counts, of the evaluation in `keras_llm.training` that fits the
            task.
        """
        return self._measure(rows, **options)

    @abc.abstractmethod
    def dataset(self, rows, batch_size=32, epochs=1, seed=None):
        """Turn rows into batches of the model's inputs and targets.

        Args:
            rows: list of what the task learns from.
            batch_size: int > 0.
            epochs: int > 0, passes over the rows.
            seed: int, an order that differs in each epoch; None keeps one order.

        Returns:
            A `tf.data.Dataset` of a known number of batches.
        """

    def _objective(self):
        """The `training.Trainer`, and the loss and metrics that it is compiled with, a dict."""
        return training.LanguageModelTrainer(self.model, ignore_id=self.tokenizer.pad_id), {}

    @abc.abstractmethod
    def _measure(self, rows, **options):
        """A dict of measures on held-out rows."""

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
    """A `Trainer` with cross-entropy of logits and accuracy, as `Fitting._objective` returns it."""
    return training.Trainer(task.model), {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        **metrics,
    }
