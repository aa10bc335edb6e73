"""Train language models without materializing their logits."""

import dataclasses
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.training.distribution import replicas
from keras_llm.training.losses.cross_entropy import ChunkedCrossEntropy
from keras_llm.training.segment_mask import packed_states
from keras_llm.training.trainers.base import Trainer
from keras_llm.types import JSON, Tensor

_COMPILE_ARGUMENTS = ("optimizer", "loss", "loss_weights", "metrics", "weighted_metrics")


@keras.saving.register_keras_serializable("keras_llm")
class LanguageModelTrainer(Trainer):
    """A trainer for models that predict tokens: `compile(optimizer)` and `fit`.

    The loss is the mean cross-entropy of the target tokens, computed in chunks from the last
    hidden states (see `ChunkedCrossEntropy`): the float tensor (B, T, V) of logits never exists.
    `fit` logs `loss` and `accuracy`, the share of targets with the largest logit. The weights are
    those of `model`: save and use `model` after training.

    On several devices (`tf.distribute`, `keras.distribution`) loss and gradients are those of the
    global batch, however its tokens are split; see docs/scaling.md for unsupported options.

    Args:
        model: a model from `models.causal_lm`, `models.seq2seq` or `models.masked_lm`, or a
            composed one from `models.as_causal_lm` or `models.as_seq2seq`.
        ignore_id: int or None. Targets with this id do not count (padding).
        label_smoothing: float in [0, 1). Probability spread uniformly over the vocabulary.
        z_loss: float >= 0, the weight of `log(sum(exp(logits)))^2`.
        chunk_size: int > 0, tokens per chunk; None for chunks of about 4 million logits.

    Data: pairs of the model's inputs and int targets (B, T), or (B, M) for a `masked_lm` model, as
    returned by `data.packed_dataset`; an optional third element, float (B, T) or (B,), weights
    tokens or rows. The loss is divided by the sum of weights. Inputs of a `causal_lm` model may be
    a dict of `token_ids`, `segment_ids` and `positions`, int (B, T): a token then attends only to
    tokens of its own segment, up to its own position.

    Raises:
        InputError: if an argument is invalid, naming it; in `compile`, if it gets a loss or
            metrics, which the trainer defines itself; in `fit`, if the weight dtype is too coarse
            for the optimizer (bfloat16 with Adam's default `beta_2`); in `fit` and `evaluate`, if
            an array of token ids has one outside the vocabulary, or the batches cannot be split
            over the devices; in `fit` over several workers, if a worker is lost, naming it.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> trainer = LanguageModelTrainer(model, ignore_id=0)
    >>> trainer.compile("adamw")
    >>> ids = np.random.default_rng(0).integers(1, 512, (8, 17))
    >>> history = trainer.fit(ids[:, :-1], ids[:, 1:], verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'loss']
    """

    def __init__(
        self,
        model: models.ConfiguredModel,
        ignore_id: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        chunk_size: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name)
        if not models.has_token_head(model):
            raise InputError(
                "`model` must come from causal_lm, seq2seq or masked_lm, got "
                f"{getattr(model, 'head', type(model).__name__)}."
            )
        for argument, ok, rule in (
            ("label_smoothing", 0 <= label_smoothing < 1, "in [0, 1)"),
            ("z_loss", z_loss >= 0, ">= 0"),
            ("chunk_size", chunk_size is None or chunk_size > 0, "a positive int or None"),
        ):
            if not ok:
                raise InputError(f"`{argument}` must be {rule}, got {locals()[argument]!r}.")
        self.ignore_id = ignore_id
        self.cross_entropy = ChunkedCrossEntropy(
            label_smoothing, z_loss, models.output_head(model).soft_cap, chunk_size
        )
        self.accuracy = keras.metrics.Mean(name="accuracy")

    def get_config(self) -> JSON:
        loss = dataclasses.asdict(self.cross_entropy)
        return {**super().get_config(), **loss, "ignore_id": self.ignore_id}

    @classmethod
    def from_config(cls, config: JSON, custom_objects: JSON | None = None) -> Self:
        arguments = {name: value for name, value in config.items() if name != "soft_cap"}
        return super().from_config(arguments, custom_objects)  # the cap is the model's

    def compile(self, *args: Any, **kwargs: Any) -> None:
        given = {**dict(zip(_COMPILE_ARGUMENTS, args, strict=False)), **kwargs}
        for name in _COMPILE_ARGUMENTS[1:]:
            if given.get(name) is not None:
                raise InputError(
                    f"`{name}` of `compile` must be None for a {type(self).__name__}, which "
                    "computes its own loss and metrics from hidden states; use training.Trainer "
                    "for other losses."
                )
        super().compile(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Return the hidden states that logits are computed from, (B, T, D)."""
        return states_of(self.model, inputs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        targets = ops.reshape(y, (-1,))
        if self.ignore_id is not None:  # may be outside the vocabulary, such as -1
            targets = ops.where(ops.equal(targets, self.ignore_id), 0, targets)
        weights = ops.reshape(self._weights(y, sample_weight), (-1,))
        states = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        head = models.output_head(self.model)
        total = ops.sum(weights)
        if replicas.is_step():
            (total,) = replicas.total([total], type(self).__name__)
        total = ops.maximum(total, 1e-9)
        if training:
            loss, _, right = self.cross_entropy.weighted_sum(
                states,
                head.kernel,
                targets,
                weights / total,
                head.bias,
                not head.trainable,
                self._teaching(x),
            )
        else:
            losses, right = self.cross_entropy.token_losses(states, head.kernel, targets, head.bias)
            loss = ops.sum(losses * weights) / total
        self.accuracy.update_state(right, sample_weight=weights)
        return self._of_whole_batch(loss) if replicas.is_step() else loss + sum(self.losses)

    def fit(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any
    ) -> keras.callbacks.History:
        validation_data = kwargs.get("validation_data")
        self._check_ids(x, y)
        if isinstance(validation_data, (tuple, list)):
            self._check_ids(*validation_data[:2])
        return super().fit(x, y, batch_size, **kwargs)

    def evaluate(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any
    ) -> float | list[float] | dict[str, float]:
        self._check_ids(x, y)
        return super().evaluate(x, y, batch_size, **kwargs)

    def _teaching(self, x):
        """Return the states and output head of a teacher; see `DistillationTrainer`."""
        return None

    def _weights(self, y, sample_weight):
        weights = ops.ones_like(y, "float32")
        if self.ignore_id is not None:
            weights = ops.cast(ops.not_equal(y, self.ignore_id), "float32")
        if sample_weight is None:
            return weights
        sample_weight = ops.cast(sample_weight, "float32")
        if len(sample_weight.shape) < len(y.shape):
            sample_weight = ops.expand_dims(sample_weight, -1)
        return weights * sample_weight

    def _check_ids(self, inputs, targets=None):
        if isinstance(inputs, dict):
            inputs = [value for name, value in inputs.items() if name.endswith("token_ids")]
        for array in keras.tree.flatten([inputs, targets]):
            if isinstance(array, np.ndarray) and array.dtype.kind in "iu":
                if array is targets and self.ignore_id is not None:
                    array = array[array != self.ignore_id]
                if array.size:
                    check_token_ids(array, self.model.config.vocabulary_size)


def states_of(model: models.ConfiguredModel, inputs: Any) -> Tensor:
    """Return the hidden states that logits are computed from, (B, T, D), for a trainer's inputs."""
    if isinstance(model, (models.CausalLM, models.ComposedLM)) and isinstance(inputs, dict):
        if set(inputs) != {"token_ids", "segment_ids", "positions"}:
            raise InputError(
                "the inputs of a decoder must be token ids, or a dict of `token_ids`, "
                f"`segment_ids` and `positions`, got {sorted(inputs)}."
            )
        return packed_states(model, **inputs)
    return models.prediction_states(model, inputs)


def check_token_ids(token_ids: Tensor, vocabulary_size: int) -> None:
    """Raise InputError if an id of an int array is not in `0 .. vocabulary_size - 1`."""
    least, most = int(np.min(token_ids)), int(np.max(token_ids))
    if least < 0 or most >= vocabulary_size:
        raise InputError(
            f"`token_ids` must be in 0 .. {vocabulary_size - 1}, the model's vocabulary, got "
            f"{least if least < 0 else most}."
        )
