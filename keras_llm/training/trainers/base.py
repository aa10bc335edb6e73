"""Models together with their losses, which train on several devices as on one."""

import keras
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.training.distribution import distribution, replicas
from keras_llm.training.optimizers.optimizers import check_precision

_MEANS = ("sum_over_batch_size", "mean")


class Trainer(keras.Model):
    """Any model together with Keras's losses and metrics, for `compile(optimizer, loss)` and `fit`.

    On one device it is what the model's own `compile` and `fit` are. On several (`tf.distribute`,
    `keras.distribution`) loss and gradients are those of the whole batch, however its rows are
    spread; see docs/scaling.md for what is refused. The weights are those of `model`, which is
    what is saved and used when training is done.

    Args:
        model: a `keras.Model`.

    Data: as of the model. A loss must be a mean over rows that do not look at each other.

    Raises:
        InputError: in `compile`, naming what Keras would do otherwise than on one device; in
            `fit`, if weights are too coarse for the optimizer (bfloat16 and Adam's usual `beta_2`),
            or several devices cannot split the batches; in `fit` over several workers, if one ends
            before the others, naming it.

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

    def __init__(self, model, name=None):
        super().__init__(name=name)
        self.model = model

    @property
    def trained(self):
        """The model whose weights are trained, that are to be kept."""
        return self.model

    def get_config(self):
        is_ours = hasattr(self.model, "config")
        return {"model": models.describe(self.model) if is_ours else self.model.get_config()}

    def call(self, inputs, training=None):
        """What the model gives."""
        return self.model(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not replicas.is_step():
            return loss
        rows = ops.cast(ops.shape(keras.tree.flatten(y)[0])[0], "float32")
        (total,) = replicas.total([rows], type(self).__name__)
        # Keras took the mean of the rows here, and of that the share of one replica.
        return self._of_whole_batch(loss * replicas.count() * rows / total)

    def _mean_of_rows(self, losses):
        """The mean of the losses (B,) of rows, on several replicas of those of the whole batch."""
        if not replicas.is_step():
            return ops.mean(losses)
        (rows,) = replicas.total([ops.cast(ops.size(losses), "float32")], type(self).__name__)
        return self._of_whole_batch(ops.sum(losses) / rows)

    def _of_whole_batch(self, part):
        """One replica's part of the sum of losses, shown to Keras as the loss of all: the gradient
        is that of the part, the value that of the batch, of which Keras expects a share."""
        if self.losses:
            raise InputError(
                "a model with losses of its own (`add_loss`: experts, regularizers) is for one "
                f"replica, and this strategy has {replicas.count()}: they are no sums over rows."
            )
        (whole,) = replicas.total([ops.stop_gradient(part)], type(self).__name__)
        return part + ops.stop_gradient(whole / replicas.count() - part)

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        with replicas.scope_of(self):
            if replicas.count() > 1:
                self._check_compiled(kwargs.get("loss", args[1] if len(args) > 1 else None))

    def fit(self, x=None, y=None, batch_size=None, **kwargs):
        check_precision(self.optimizer, self.trained.trainable_variables)
        distribution.check_batches(x, batch_size)
        distribution.check_batches(kwargs.get("validation_data"), batch_size, "validation_data")
        if hasattr(x, "element_spec"):  # a data set, of which Keras would warn that it stays as is
            kwargs.setdefault("shuffle", False)
        with replicas.scope_of(self):
            if replicas.count() > 1 and not kwargs.get("steps_per_epoch"):
                self._check_length(x)
            with replicas.naming_lost_workers():
                return super().fit(replicas.sharded_by_row(x), y, batch_size, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        distribution.check_batches(x, batch_size)
        return super().evaluate(x, y, batch_size, **kwargs)

    def train_step(self, *args):
        with replicas.after(args):
            return replicas.step_logs(super().train_step(*args))

    def test_step(self, *args):
        return replicas.step_logs(super().test_step(*args))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        with replicas.scope_of(self):
            if replicas.count() > 1 and iterator is not None:
                data_batch, iterator = replicas.first_batch(iterator), None
            super()._maybe_symbolic_build(iterator, data_batch)

    def _check_compiled(self, loss):
        """Refuse what Keras does otherwise than on one replica, or not at all."""
        if hasattr(self.optimizer, "inner_optimizer"):
            raise InputError(
                "mixed_float16 is for one replica, and this strategy has "
                f"{replicas.count()}: each would scale its loss by itself; use mixed_bfloat16."
            )
        if self.jit_compile or self.steps_per_execution > 1:
            raise InputError(
                "`jit_compile` and `steps_per_execution` above 1 are for one replica, and this "
                f"strategy has {replicas.count()}."
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
                    f"`{name}` of keras.optimizers.{type(self.optimizer).__name__} would count for "
                    f"each of {replicas.count()} replicas by itself; use training.AdamW, Lion or "
                    "Muon."
                )

    def _check_length(self, data):
        """Keras goes one step beyond data of unknown length, with nothing to learn from."""
        if hasattr(data, "cardinality") and int(data.cardinality()) < 0:
            raise InputError(
                "over several replicas the length of the data must be known: give "
                "`steps_per_epoch`."
            )
