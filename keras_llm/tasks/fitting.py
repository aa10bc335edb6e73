"""Train and evaluate a task on strings."""

import inspect
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_llm import training
from keras_llm.errors import InputError
from keras_llm.types import Dataset

if TYPE_CHECKING:
    from keras_llm.tasks.base import Task


class Fitting:
    """A mixin that adds `compile`, `fit`, `trainer` and `evaluate` to a task.

    A task implements `dataset` (rows to batches), `_objective` (the loss) and `_measure` (the
    evaluation).
    """

    _trainer: Any = None
    _compiled_with: tuple[Any, float, float, dict[str, Any]] = (None, 1e-3, 0.01, {})

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        **options: Any,
    ) -> None:
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
        rows: Sequence[Any],
        validation_data: Sequence[Any] | None = None,
        batch_size: int = 32,
        epochs: int = 1,
        seed: int = 0,
        callbacks: list[keras.callbacks.Callback] | None = None,
        verbose: str | int = "auto",
        **options: Any,
    ) -> keras.callbacks.History:
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
            InputError: if the rows are invalid or fewer than one batch, or an option is unknown.
        """
        check_options(self, "fit", self.dataset, options)
        if seed is None:
            raise InputError("`seed` must be an int, got None.")
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
        if self._trainer is None or self._compiled_with[0] is None:  # its schedule is for `steps`
            self._trainer = self._new_trainer(steps)
        return self._trainer.fit(
            data,
            steps_per_epoch=steps // epochs,
            epochs=epochs,
            validation_data=held_out,
            callbacks=callbacks,
            verbose=verbose,
        )

    def evaluate(self, rows: Sequence[Any], **options: Any) -> dict[str, Any]:
        """Evaluate the task on held-out rows.

        Args:
            rows: the held-out examples, see `dataset`.
            **options: for a `TextGeneration`, `batch_size` and the options of `dataset`; for a
                `MaskedLanguageModel`, the arguments of `dataset`; for a `Translation`, settings of
                the generation.

        Returns:
            A dict of metrics and counts, from the task's evaluation in `keras_llm.training`.

        Raises:
            InputError: if the rows are invalid or an option is unknown, naming it.
        """
        check_options(self, "evaluate", self._measure, options)
        return self._measure(rows, **options)

    def trainer(
        self, optimizer: str | keras.optimizers.Optimizer, **options: Any
    ) -> training.Trainer:
        """Return a compiled trainer of the model, to call its `fit` on batches from `dataset`.

        Args:
            optimizer: a Keras optimizer or its name.
            **options: other arguments of `keras.Model.compile`; `loss` and `metrics` default to
                those of the task.

        Returns:
            A `training.Trainer`.

        Raises:
            InputError: if the task cannot be trained.
        """
        trainer, objective = self._objective()
        # JAX is slow without XLA; on TensorFlow, compiling takes longer than a short training.
        defaults = {"jit_compile": keras.backend.backend() == "jax", **objective}
        trainer.compile(optimizer, **{**defaults, **options})
        return trainer

    def dataset(
        self, rows: Sequence[Any], batch_size: int = 32, epochs: int = 1, seed: int | None = None
    ) -> Dataset:
        """Convert rows to batches of the model's inputs and targets.

        Args:
            rows: list of what the task learns from.
            batch_size: int > 0.
            epochs: int > 0, passes over the rows.
            seed: int, for an order that differs in each epoch; None for one pass over held-out
                rows, none left out.

        Returns:
            A `tf.data.Dataset` of a known number of batches.

        Raises:
            InputError: naming what is wrong with the rows; or if the task cannot be trained on
                strings.
        """
        raise InputError(f"a {type(self).__name__} cannot be trained on strings.")

    def _objective(self):
        """Return the `training.Trainer` and a dict of the loss and metrics to compile it with."""
        return training.LanguageModelTrainer(self.model, ignore_id=self.tokenizer.pad_id), {}

    def _measure(self, rows):
        """Return a dict of metrics on held-out rows."""
        raise InputError(f"a {type(self).__name__} cannot be evaluated on strings.")

    def _new_trainer(self, steps):
        optimizer, rate, decay, options = self._compiled_with
        if optimizer is None:
            schedule = training.WarmupDecay(rate, steps, steps // 20)
            optimizer = training.AdamW(
                schedule, weight_decay=decay, beta_2=0.95, global_clipnorm=1.0
            )
        elif not isinstance(optimizer, str):  # a built one belongs to one set of variables
            optimizer = type(optimizer).from_config(optimizer.get_config())
        return self.trainer(optimizer, **options)


def check_options(
    task: Fitting, method: str, function: Callable[..., Any], options: dict[str, Any]
) -> None:
    """Raise InputError if `function`, which `method` of the task calls, lacks one of the options.

    A function with arbitrary keyword arguments checks them itself.
    """
    _, *parameters = inspect.signature(function).parameters.values()  # the first is `rows`
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [parameter.name for parameter in parameters]
    unknown = [name for name in options if name not in names]
    if unknown:
        valid = ", ".join(f"`{name}`" for name in names) or "none"
        raise InputError(
            f"`{unknown[0]}` is not an option of {type(task).__name__}.{method}; valid: {valid}."
        )


def checked_rows(rows: Iterable[Any], fields: Sequence[str]) -> list[Any]:
    """Return rows as a list; check that each is a tuple of as many values as `fields`.

    Raises:
        InputError: if one is not, naming the first; or if there are no rows.
    """
    kind = {2: "pair", 3: "triple"}[len(fields)]
    rows = list(rows)
    for index, row in enumerate(rows):
        if isinstance(row, str) or not isinstance(row, (list, tuple)) or len(row) != len(fields):
            raise InputError(
                f"row {index} must be a {kind} ({', '.join(fields)}), got {reprlib.repr(row)}."
            )
    if not rows:
        raise InputError("there are no rows.")
    return rows


def classification_objective(
    task: "Task", **metrics: Any
) -> tuple[training.Trainer, dict[str, Any]]:
    """Return a `Trainer` with cross-entropy loss and accuracy; see `Fitting._objective`."""
    return training.Trainer(task.model), {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        **metrics,
    }
