"""Compute the InfoNCE contrastive loss with in-batch negatives."""

from typing import Any

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.training.distribution import replicas
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class ContrastiveLoss(keras.losses.Loss):
    """InfoNCE loss with in-batch negatives.

    With unit vectors `a_i` of the anchors and `c_j` of all candidates (positives and hard
    negatives) in the batch, and `s_ij = a_i . c_j / temperature`:
    `loss_i = log sum_j exp(s_ij) - s_ii`. If `symmetric`, the loss is the mean of this and of the
    same loss from positives to anchors.

    Args:
        temperature: float > 0.
        symmetric: bool. Whether to add the loss from positives to anchors.
        reduction, name, dtype: see `keras.losses.Loss`.

    Call arguments:
        y_true: int tensor (B,) or (B, 1), group ids: texts of other rows with the same id are not
            negatives of a row. Use 0 .. B - 1 if all rows differ.
        y_pred: float tensor (B, P, E). Each row holds the vectors of the anchor, its positive and
            P - 2 hard negatives; see `siamese`.

    Returns:
        Float tensor (B,).

    Raises:
        InputError: if `temperature` is not positive, a row has fewer than two vectors, or the
            batch is split over several replicas, which would not share their negatives.

    References:
        van den Oord et al., 2018, "Representation Learning with Contrastive Predictive Coding",
        eq. 4; Henderson et al., 2017, "Efficient Natural Language Response Suggestion", section 4
        (the batch as negatives).

    Example:
    >>> import numpy as np
    >>> pairs = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]], "float32")
    >>> bool(ContrastiveLoss()(np.arange(2), pairs) < 1e-3)
    True
    """

    def __init__(
        self,
        temperature: float = 0.05,
        symmetric: bool = False,
        name: str = "contrastive_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if not temperature > 0:
            raise InputError(f"`temperature` must be > 0, got {temperature!r}.")
        self.temperature = temperature
        self.symmetric = symmetric

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if len(y_pred.shape) != 3 or y_pred.shape[1] < 2:
            raise InputError(
                f"`y_pred` must have shape (B, P, E) with P > 1, got {tuple(y_pred.shape)}; see "
                "siamese."
            )
        replicas.check_one("ContrastiveLoss")
        vectors = ops.normalize(ops.cast(y_pred, "float32"), axis=-1)
        first, size = vectors[:, 0], vectors.shape[-1]
        candidates = ops.reshape(ops.transpose(vectors[:, 1:], (1, 0, 2)), (-1, size))
        scores = ops.matmul(first, ops.transpose(candidates)) / self.temperature  # (B, (P - 1) B)
        groups = ops.reshape(y_true, (-1,))
        same_group = ops.equal(ops.expand_dims(groups, 1), ops.expand_dims(groups, 0))
        same_row = ops.eye(ops.shape(groups)[0], dtype="bool")
        # A row's own hard negatives stay in, although they have its group id.
        excluded = ops.logical_and(same_group, ops.logical_not(same_row))
        count = vectors.shape[1] - 1
        scores = ops.where(ops.tile(excluded, (1, count)), -1e9, scores)
        losses = _cross_entropy(scores)
        if self.symmetric:
            back = scores[:, : ops.shape(groups)[0]]
            losses = (losses + _cross_entropy(ops.transpose(back))) / 2
        return losses

    def get_config(self) -> JSON:
        own = {"temperature": self.temperature, "symmetric": self.symmetric}
        return {**super().get_config(), **own}


def _cross_entropy(scores: Tensor) -> Tensor:
    """Return losses (B,) of scores (B, >= B); the targets are on the diagonal."""
    return ops.logsumexp(scores, axis=1) - ops.diagonal(scores)


def siamese(embedder: keras.Model, num_texts: int = 2) -> keras.Model:
    """Return a siamese model: it embeds several texts per row with shared weights.

    Train it with `ContrastiveLoss`, `compile` and `fit`.

    Args:
        embedder: a model from `models.sentence_embedder`; its weights are shared.
        num_texts: int > 1, P: the anchor, its positive and P - 2 hard negatives.

    Returns:
        A `keras.Model`. Inputs: a flat list of the embedder's inputs for each text, or a dict with
        names like `token_ids_0` and `padding_mask_1`. Output: float vectors (B, P, E).

    Raises:
        InputError: if `embedder` is another kind of model or `num_texts` is less than 2.
    """
    if getattr(embedder, "head", None) != "sentence_embedder":
        raise InputError("`embedder` must come from models.sentence_embedder.")
    if not isinstance(num_texts, int) or num_texts < 2:
        raise InputError(f"`num_texts` must be an int > 1, got {num_texts!r}.")
    inputs = [
        [
            keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=f"{tensor.name}_{i}")
            for tensor in embedder.inputs
        ]
        for i in range(num_texts)
    ]
    vectors = ops.stack([embedder(row) for row in inputs], axis=1)
    return keras.Model([tensor for row in inputs for tensor in row], vectors, name="siamese")
