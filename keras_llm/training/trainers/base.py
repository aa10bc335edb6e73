"""Train Keras models with the same result on one or several devices."""

from collections.abc import Callable
from typing import Any, Self

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.keras_internals import BuildHook, flatten_layers
from keras_llm.training.distribution import distribution, replicas
from keras_llm.training.optimizers.optimizers import check_precision
from keras_llm.types import JSON, Tensor

_MEANS = ("sum_over_batch_size", "mean")


@keras.saving.register_keras_serializable("keras_llm")
class Trainer(BuildHook):
    """A trainer for any model with Keras losses and metrics: `compile(optimizer, loss)` and `fit`.

    On one device it behaves like the model's own `compile` and `fit`. On several devices
    (`tf.distribute`, `keras.distribution`) loss and gradients are those of the global batch,
    however its rows are split; see docs/scaling.md for unsupported options. The weights are those
    of `model`: save and use `model` after training. To continue a training elsewhere, Keras's
    `save`, `load_model`, `ModelCheckpoint` and `BackupAndRestore` work with the trainer.

    Args:
        model: a `keras.Model`. If its layers compute in mixed_float16, `compile` scales the loss as
            Keras does for a model with this dtype policy.

    Data: as for the model. The loss must be a mean over independent rows.

    Raises:
        InputError: in `compile`, if an option gives a different result on several devices; in
            `fit`, if the weight dtype is too coarse for the optimizer (bfloat16 with Adam's default
            `beta_2`), or the batches cannot be split over the devices; in `fit` over several
            workers, if a worker is lost, naming it.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> from keras_llm import models
    >>> trainer = Trainer(models.text_classifier(models.preset("encoder-tiny"), 2))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> trainer.compile("adamw", loss, jit_compile=False)
    >>> ids = np.random.default_rng(0).integers(1, 512, (8, 17))
    >>> inputs = {"token_ids": ids, "padding_mask": np.ones((8, 17), "bool")}
    >>> list(trainer.fit(inputs, np.arange(8) % 2, verbose=0).history)
    ['loss']
    """

    def __init__(self, model: keras.Model, name: str | None = None) -> None:
        # Keras scales the loss if the policy of the compiled model, here the trainer, asks for it.
        policies = {layer.dtype_policy.name for layer in flatten_layers(model)}
        policy = "mixed_float16" if "mixed_float16" in policies else None
        # Inputs keep their dtype: the first layer may compute in float32.
        super().__init__(name=name, dtype=policy, autocast=False)
        self.model = model
        self.built = model.built

    @property
    def trained(self) -> keras.Model:
        """The model with all trained weights."""
        return self.model

    def get_config(self) -> JSON:
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: JSON, custom_objects: JSON | None = None) -> Self:
        config = {
            name: keras.saving.deserialize_keras_object(value, custom_objects)
            if isinstance(value, dict)
            else value
            for name, value in config.items()
        }
        return cls(**config)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the model's outputs."""
        return self.model(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not replicas.is_step():
            return loss
        rows = ops.cast(ops.shape(keras.tree.flatten(y)[0])[0], "float32")
        (total,) = replicas.total([rows], type(self).__name__)
        # Keras computed the mean over this replica's rows, divided by the number of replicas.
        return self._of_whole_batch(loss * replicas.count() * rows / total)

    def _mean_of_rows(self, losses):
        """Return the mean of the losses (B,) of rows, over the global batch on several replicas."""
        if not replicas.is_step():
            return ops.mean(losses)
        (rows,) = replicas.total([ops.cast(ops.size(losses), "float32")], type(self).__name__)
        return self._of_whole_batch(ops.sum(losses) / rows)

    def _of_whole_batch(self, part):
        """Return the global batch's loss, given one replica's part of the sum.

        The gradient is that of the part. The value is the total divided by the number of replicas,
        because Keras expects each replica's share of the loss.
        """
        if self.losses:
            raise InputError(
                "a model with losses of its own (`add_loss`: experts, regularizers) supports only "
                f"one replica, and this strategy has {replicas.count()}: these losses are not sums "
                "over rows."
            )
        (whole,) = replicas.total([ops.stop_gradient(part)], type(self).__name__)
        return part + ops.stop_gradient(whole / replicas.count() - part)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        with replicas.scope_of(self):
            if replicas.count() > 1:
                self._check_compiled(kwargs.get("loss", args[1] if len(args) > 1 else None))

    def compile_from_config(self, config: JSON) -> None:
        """Compile a trainer that Keras loads from a file."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any
    ) -> keras.callbacks.History:
        check_precision(self.optimizer, self.trained.trainable_variables)
        distribution.check_batches(x, batch_size)
        distribution.check_batches(kwargs.get("validation_data"), batch_size, "validation_data")
        if hasattr(x, "element_spec"):  # a tf.data.Dataset; avoids Keras's warning about shuffle
            kwargs.setdefault("shuffle", False)
        with replicas.scope_of(self):
            if replicas.count() > 1 and not kwargs.get("steps_per_epoch"):
                self._check_length(x)
            with replicas.naming_lost_workers():
                return super().fit(replicas.sharded_by_row(x), y, batch_size, **kwargs)

    def evaluate(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any
    ) -> float | list[float] | dict[str, float]:
        distribution.check_batches(x, batch_size)
        return super().evaluate(x, y, batch_size, **kwargs)

    def train_step(self, *args: Any) -> Any:
        with replicas.after(args):
            return replicas.step_logs(super().train_step(*args))

    def test_step(self, *args: Any) -> Any:
        return replicas.step_logs(super().test_step(*args))

    def build_from(self, build: Callable[..., None], iterator: Any, data_batch: Any) -> None:
        with replicas.scope_of(self):
            if replicas.count() > 1 and iterator is not None:
                data_batch, iterator = replicas.first_batch(iterator), None
            build(iterator, data_batch)

    def _check_compiled(self, loss):
        """Raise InputError for options that Keras does not support or changes on replicas."""
        if hasattr(self.optimizer, "inner_optimizer"):
            raise InputError(
                "mixed_float16 supports only one replica, and this strategy has "
                f"{replicas.count()}: each replica would scale its loss separately; use "
                "mixed_bfloat16."
            )
        if self.jit_compile or self.steps_per_execution > 1:
            raise InputError(
                "`jit_compile` and `steps_per_execution` above 1 support only one replica, and "
                f"this strategy has {replicas.count()}."
            )
        for one in keras.tree.flatten(loss):
            if getattr(one, "reduction", "mean") not in _MEANS:
                raise InputError(
                    f"the loss {one.name!r} has the reduction {one.reduction!r}; over several "
                    f"replicas it must be one of {', '.join(_MEANS)}."
                )
        for name in (
            "clipnorm",
            "global_clipnorm",
            "clipvalue",
            "gradient_accumulation_steps",
            "ema_overwrite_frequency",
        ):
            if getattr(self.optimizer, name, None) and not hasattr(self.optimizer, "skip_factor"):
                raise InputError(
                    f"`{name}` of keras.optimizers.{type(self.optimizer).__name__} would apply to "
                    f"each of {replicas.count()} replicas separately; use training.AdamW, Lion or "
                    "Muon."
                )

    def _check_length(self, data):
        """Raise InputError if the length of `data` is unknown: Keras would run one empty step."""
        if hasattr(data, "cardinality") and int(data.cardinality()) < 0:
            raise InputError(
                "with several replicas the length of the data must be known; pass "
                "`steps_per_epoch`."
            )
