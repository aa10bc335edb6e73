"""Train a language model by knowledge distillation."""

import dataclasses
import pathlib
from typing import Any

import keras
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.training.losses.cross_entropy import ChunkedCrossEntropy, capped
from keras_llm.training.trainers.language_model import LanguageModelTrainer, states_of
from keras_llm.types import JSON

_TEACHER = "teacher.weights.h5"


@dataclasses.dataclass(frozen=True)
class ChunkedDistillation(ChunkedCrossEntropy):
    """`ChunkedCrossEntropy` mixed with the KL divergence from a teacher.

    With `p = softmax(teacher logits / t)`, `q = softmax(l / t)` and the cross-entropy C:
    `loss = (1 - share) C + share t^2 sum p log(p / q)`. The divergence is used in training only;
    without a teacher the loss is C.

    Args:
        share: float in [0, 1], the weight of the divergence.
        temperature: float > 0, t.

    Reference:
        Hinton et al., 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """

    share: float = 0.5
    temperature: float = 2.0

    def _chunk(self, raw, targets, weights, gradients, teacher_logits=None):
        losses, right, d = super()._chunk(raw, targets, weights, gradients)
        if teacher_logits is None:
            return losses, right, d
        t, share = self.temperature, self.share
        logits = capped(raw, self.soft_cap)
        log_p = ops.log_softmax(teacher_logits / t, axis=-1)
        log_q = ops.log_softmax(logits / t, axis=-1)
        p = ops.exp(log_p)
        divergence = ops.sum(p * (log_p - log_q), axis=-1)
        losses = (1.0 - share) * losses + share * t * t * divergence
        if gradients:
            d_divergence = (ops.exp(log_q) - p) * ops.expand_dims(weights, 1) * t
            if self.soft_cap is not None:
                d_divergence *= 1.0 - ops.square(logits / self.soft_cap)
            d = (1.0 - share) * d + share * d_divergence
        return losses, right, d


@keras.saving.register_keras_serializable("keras_llm")
class DistillationTrainer(LanguageModelTrainer):
    """A `LanguageModelTrainer` that distills a teacher into the model.

    The teacher runs on each batch; the full logits of student and teacher are never in memory. The
    teacher's weights are not part of the trainer's and do not change: a `.keras` file of the
    trainer contains them, a weights file does not. `evaluate` and validation losses are the
    cross-entropy of the targets only, so they are comparable with other runs.

    Args:
        model: the student, from `models.causal_lm`, `models.seq2seq` or `models.masked_lm`.
        teacher: a model of the same kind with the same vocabulary.
        share: float in [0, 1]. Weight of the teacher's loss; the targets get `1 - share`.
        temperature: float > 0. Divides the logits of student and teacher.
        **kwargs: see `LanguageModelTrainer`, also for the data.

    Raises:
        InputError: naming the argument that is wrong.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> small, large = (models.preset("llama-tiny", num_layers=n) for n in (1, 2))
    >>> trainer = DistillationTrainer(models.causal_lm(small), models.causal_lm(large))
    >>> trainer.compile("adamw", jit_compile=False)
    >>> ids = np.random.default_rng(0).integers(1, 512, (8, 17))
    >>> sorted(trainer.fit(ids[:, :-1], ids[:, 1:], verbose=0).history)
    ['accuracy', 'loss']
    """

    def __init__(
        self,
        model: models.ConfiguredModel,
        teacher: models.ConfiguredModel,
        share: float = 0.5,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if not models.has_token_head(teacher):
            raise InputError("`teacher` must come from causal_lm, seq2seq or masked_lm.")
        sizes = [m.config.vocabulary_size for m in (model, teacher)]
        if sizes[0] != sizes[1] or len(model.inputs) != len(teacher.inputs):
            raise InputError(
                f"`teacher` must have the model's inputs and its vocabulary size {sizes[0]}, got "
                f"{len(teacher.inputs)} inputs and vocabulary size {sizes[1]}."
            )
        if not 0 <= share <= 1:
            raise InputError(f"`share` must be in [0, 1], got {share!r}.")
        if not temperature > 0:
            raise InputError(f"`temperature` must be > 0, got {temperature!r}.")
        options = dataclasses.asdict(self.cross_entropy)
        self.cross_entropy = ChunkedDistillation(**options, share=share, temperature=temperature)
        self._teacher = lambda: teacher  # a function, so that Keras does not track the weights

    def get_config(self) -> JSON:
        teacher = keras.saving.serialize_keras_object(self._teacher())
        return {**super().get_config(), "teacher": teacher}

    def save_assets(self, dir_path: str) -> None:
        """Write the weights of the teacher; Keras calls it for `.keras` files."""
        self._teacher().save_weights(pathlib.Path(dir_path) / _TEACHER)

    def load_assets(self, dir_path: str) -> None:
        """Read the weights of the teacher from `save_assets`."""
        self._teacher().load_weights(pathlib.Path(dir_path) / _TEACHER)

    def _teaching(self, x):
        teacher = self._teacher()
        states = ops.stop_gradient(states_of(teacher, x))
        return ops.reshape(states, (-1, states.shape[-1])), models.output_head(teacher)
