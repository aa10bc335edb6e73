"""Vectors of texts that belong together are drawn near, those of the rest of a batch away."""

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.training.distribution import replicas


@keras.saving.register_keras_serializable("keras_llm")
class ContrastiveLoss(keras.losses.Loss):
    """InfoNCE over the batch: a text shall be nearer to its partner than to any other text.

    With unit vectors `a_i` of the first texts and `c_j` of all others in the batch, and
    `s_ij = a_i . c_j / temperature`: `loss_i = log sum_j exp(s_ij) - s_ii`. If it is symmetric, the
    mean of that and the same from the partners to the first texts.

    Args:
        temperature: float > 0.
        symmetric: bool. Whether partners look for their first texts too.
        reduction, name, dtype: as of Keras losses.

    Call arguments:
        y_true: int tensor (B,) or (B, 1), of rows what they are about: texts of other rows with
            the same number are not held against a row. All different: 0 .. B - 1.
        y_pred: float tensor (B, P, E), of each row the vectors of a text, of its partner, and of
            any number of texts that are much like it but do not belong to it; see `siamese`.

    Returns:
        Float tensor (B,).

    Raises:
        InputError: if `temperature` is not positive, a row has fewer than two vectors, or several
            replicas share a batch, each with its own others.

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

    def __init__(self, temperature=0.05, symmetric=False, name="contrastive_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        if not temperature > 0:
            raise InputError(f"`temperature` must be > 0, got {temperature!r}.")
        self.temperature = temperature
        self.symmetric = symmetric

    def call(self, y_true, y_pred):
        if len(y_pred.shape) != 3 or y_pred.shape[1] < 2:
            raise InputError(
                f"`y_pred` must be (B, P, E) with P > 1, got {tuple(y_pred.shape)}; see siamese."
            )
        replicas.check_one("ContrastiveLoss")
        vectors = ops.normalize(ops.cast(y_pred, "float32"), axis=-1)
        first, size = vectors[:, 0], vectors.shape[-1]
        others = ops.reshape(ops.transpose(vectors[:, 1:], (1, 0, 2)), (-1, size))
        scores = ops.matmul(first, ops.transpose(others)) / self.temperature  # (B, (P - 1) B)
        about = ops.reshape(y_true, (-1,))
        alike = ops.equal(ops.expand_dims(about, 1), ops.expand_dims(about, 0))
        own = ops.eye(ops.shape(about)[0], dtype="bool")
        left_out = ops.logical_and(alike, ops.logical_not(own))
        # What a row itself is not to be taken for counts against it, whatever it is about.
        count = vectors.shape[1] - 1
        scores = ops.where(ops.tile(left_out, (1, count)), -1e9, scores)
        losses = _cross_entropy(scores)
        if self.symmetric:
            back = scores[:, : ops.shape(about)[0]]
            losses = (losses + _cross_entropy(ops.transpose(back))) / 2
        return losses

    def get_config(self):
        own = {"temperature": self.temperature, "symmetric": self.symmetric}
        return {**super().get_config(), **own}


def _cross_entropy(scores):
    """(B, at least B) -> (B,), the right answer on the diagonal."""
    return ops.logsumexp(scores, axis=1) - ops.diagonal(scores)


def siamese(embedder, num_texts=2):
    """A model that embeds several texts of a row with the same weights, to be trained by
    `ContrastiveLoss` with plain `compile` and `fit`.

    Args:
        embedder: a model from `models.sentence_embedder`; its weights are shared.
        num_texts: int > 1, P: a text, its partner, and others that do not belong to it.

    Returns:
        A `keras.Model` from a list of the embedder's inputs for each text in turn, or a dict
        of them by names like `token_ids_0` and `padding_mask_1`, to float vectors (B, P, E).

    Raises:
        InputError: if `embedder` is another model or `num_texts` less than 2.
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
