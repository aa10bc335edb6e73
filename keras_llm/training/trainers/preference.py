"""Train on preference pairs, chosen and rejected answers, with DPO and ORPO."""

import dataclasses
from typing import Any, Self

import keras
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.training.distribution import replicas
from keras_llm.training.trainers.language_model import LanguageModelTrainer
from keras_llm.types import JSON, Tensor


@dataclasses.dataclass(frozen=True)
class DPO:
    """Direct preference optimization.

    With `p` the log-probability of an answer, `r` its log-probability under the reference model,
    and the reward margin `m = beta ((p - r)[chosen] - (p - r)[rejected])`:
    `loss = -(1 - e) log sigmoid(m) - e log sigmoid(-m)`, e = `label_smoothing`.

    Args:
        beta: float > 0. Larger values keep the model closer to the reference.
        label_smoothing: float in [0, 0.5). Assumed share of pairs with flipped labels.

    Raises:
        InputError: if an argument is out of range, naming it.

    Reference:
        Rafailov et al., 2023, "Direct Preference Optimization", eq. 7; Mitchell, 2023, "A note on
        DPO with noisy preferences" (label smoothing).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs_reference = True

    def __post_init__(self) -> None:
        _check(self, "beta", self.beta > 0, "> 0")
        _check(self, "label_smoothing", 0 <= self.label_smoothing < 0.5, "in [0, 0.5)")

    def losses(
        self, log_p: Tensor, num_tokens: Tensor, reference: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the losses of pairs and their derivatives.

        Args:
            log_p: float tensor (B, 2), log-probabilities of the chosen and the rejected answers.
            num_tokens: float tensor (B, 2), the number of tokens of the answers.
            reference: float tensor (B, 2), `log_p` under the reference model.

        Returns:
            Three float tensors: the losses (B,), their derivatives with respect to `log_p` (B, 2),
            and the margins (B,), above 0 where the model prefers the chosen answer.
        """
        rewards = self.beta * (log_p - reference)
        margin = rewards[:, 0] - rewards[:, 1]
        e = self.label_smoothing
        losses = (1 - e) * ops.softplus(-margin) + e * ops.softplus(margin)
        slope = self.beta * (e * ops.sigmoid(margin) - (1 - e) * ops.sigmoid(-margin))
        return losses, ops.stack([slope, -slope], axis=1), margin


@dataclasses.dataclass(frozen=True)
class ORPO:
    """Odds ratio preference optimization, without a reference model.

    With `q` the mean log-probability of an answer's tokens,
    `m = log(odds[chosen] / odds[rejected])` and `log odds = q - log(1 - exp(q))`:
    `loss = -q[chosen] - weight log sigmoid(m)`.

    Args:
        weight: float > 0, lambda.

    Raises:
        InputError: if `weight` is out of range.

    Reference:
        Hong et al., 2024, "ORPO: Monolithic Preference Optimization without Reference Model".
    """

    weight: float = 0.1
    needs_reference = False

    def __post_init__(self) -> None:
        _check(self, "weight", self.weight > 0, "> 0")

    def losses(
        self, log_p: Tensor, num_tokens: Tensor, reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the losses like `DPO.losses`; the margins are the log odds ratios."""
        num_tokens = ops.maximum(num_tokens, 1.0)
        mean = ops.minimum(log_p / num_tokens, -1e-6)  # at 0 the odds would be infinite
        rest = -ops.expm1(mean)
        log_odds = mean - ops.log(rest)
        margin = log_odds[:, 0] - log_odds[:, 1]
        losses = self.weight * ops.softplus(-margin) - mean[:, 0]
        d_odds = ops.expand_dims(self.weight * ops.sigmoid(-margin), 1) / rest
        slopes = ops.stack([-1.0 - d_odds[:, 0], d_odds[:, 1]], axis=1) / num_tokens
        return losses, slopes, margin


_KINDS = (DPO, ORPO)


@keras.saving.register_keras_serializable("keras_llm")
class PreferenceTrainer(LanguageModelTrainer):
    """A trainer for DPO and ORPO on a causal language model: `compile(optimizer)` and `fit`.

    The reference model is not in memory: its log-probabilities come with the data; compute them
    once before training with `log_probabilities`. The full tensor of logits never exists: a first
    chunked pass computes the token losses, and a second one, which knows the weight of each token,
    computes the gradients. `fit` logs `loss`, `accuracy` (the share of pairs with a margin above 0)
    and `margin` (its mean). Build the model without dropout, which would add noise relative to the
    reference.

    Args:
        model: a model from `models.causal_lm`, with or without adapters from `add_lora`.
        objective: `DPO(...)` or `ORPO(...)`.
        chunk_size: see `LanguageModelTrainer`.

    Data: a dict of `token_ids` (B, 2, T) and, for DPO, `reference` (B, 2); int targets (B, 2, T);
    weights (B, 2, T), 1 for answer tokens. The chosen answer comes first in each pair, as in
    `data.preference_dataset`.

    Raises:
        InputError: if an argument is invalid, naming it; in `fit`, if the data has no weights or,
            for DPO, no `reference`.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> trainer = PreferenceTrainer(models.causal_lm(models.preset("llama-tiny")), ORPO())
    >>> trainer.compile("adamw", jit_compile=False)
    >>> ids = np.random.default_rng(0).integers(1, 512, (4, 2, 9))
    >>> x, y, weights = {"token_ids": ids[..., :-1]}, ids[..., 1:], np.ones((4, 2, 8), "float32")
    >>> sorted(trainer.fit(x, y, sample_weight=weights, verbose=0, shuffle=False).history)
    ['accuracy', 'loss', 'margin']
    """

    def __init__(
        self,
        model: models.CausalLM,
        objective: DPO | ORPO,
        chunk_size: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(model, chunk_size=chunk_size, name=name)
        if not isinstance(model, models.CausalLM):
            raise InputError("`model` must come from models.causal_lm.")
        if not isinstance(objective, _KINDS):
            raise InputError(f"`objective` must be a DPO or an ORPO object, got {objective!r}.")
        self.objective = objective
        self.margin = keras.metrics.Mean(name="margin")

    def get_config(self) -> JSON:
        options = dataclasses.asdict(self.objective)
        return {**super().get_config(), type(self.objective).__name__: options}

    @classmethod
    def from_config(cls, config: JSON, custom_objects: JSON | None = None) -> Self:
        (objective,) = (kind(**config[kind.__name__]) for kind in _KINDS if kind.__name__ in config)
        arguments = {name: config[name] for name in ("name", "model", "chunk_size")}
        return super().from_config({**arguments, "objective": objective}, custom_objects)

    def call(self, inputs: dict[str, Tensor], training: bool | None = None) -> Tensor:
        """Return the hidden states that logits are computed from, (2 B, T, D), pairs in order."""
        token_ids = inputs["token_ids"]
        if len(token_ids.shape) != 3 or token_ids.shape[1] not in (2, None):
            raise InputError(
                f"`token_ids` must have shape (B, 2, T), got {tuple(token_ids.shape)}."
            )
        rows = ops.reshape(token_ids, (-1, ops.shape(token_ids)[2]))
        return models.prediction_states(self.model, rows)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        if sample_weight is None:
            raise InputError("the data must have sample weights, 1 for answer tokens.")
        reference = None
        if self.objective.needs_reference:
            if "reference" not in x:
                raise InputError(
                    "the data must have `reference`, the log-probabilities of the reference "
                    "model; see log_probabilities."
                )
            reference = x["reference"]
        weights = ops.cast(sample_weight, "float32")
        head = models.output_head(self.model)
        states = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        targets = ops.reshape(y, (-1,))
        losses, _ = self.cross_entropy.token_losses(
            ops.stop_gradient(states), ops.stop_gradient(head.kernel), targets, head.bias
        )
        log_p = -ops.sum(ops.reshape(losses, ops.shape(weights)) * weights, axis=-1)
        losses, slopes, margin = self.objective.losses(log_p, ops.sum(weights, axis=-1), reference)
        self.accuracy.update_state(margin > 0)
        self.margin.update_state(margin)
        pairs = ops.cast(ops.shape(losses)[0], "float32")
        if replicas.is_step():
            (pairs,) = replicas.total([pairs], type(self).__name__)
        loss = ops.sum(losses) / pairs
        if training:
            loss = self._with_gradient(loss, slopes / pairs, states, targets, weights, head)
        return self._of_whole_batch(loss) if replicas.is_step() else loss + sum(self.losses)

    def _with_gradient(self, loss, slopes, states, targets, weights, head):
        """Return `loss` with the gradient of the token losses, weighted by the chain rule."""
        counts = -ops.expand_dims(slopes, -1) * weights
        tokens, _, _ = self.cross_entropy.weighted_sum(
            states,
            head.kernel,
            targets,
            ops.stop_gradient(ops.reshape(counts, (-1,))),
            head.bias,
            not head.trainable,
        )
        return ops.stop_gradient(loss - tokens) + tokens


def _check(objective, name, ok, rule):
    if not ok:
        raise InputError(f"`{name}` must be {rule}, got {getattr(objective, name)!r}.")
