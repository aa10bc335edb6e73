"""Run a causal language model on packed rows with attention limited to each segment."""

from keras import ops

from keras_llm import models
from keras_llm.layers import causal_mask
from keras_llm.types import Tensor


def packed_states(
    model: models.CausalLM | models.ComposedLM,
    token_ids: Tensor,
    segment_ids: Tensor,
    positions: Tensor,
) -> Tensor:
    """Return the hidden states of packed rows, with attention only within each segment.

    Args:
        model: a model from `models.causal_lm`, or a composed one from `models.as_causal_lm`.
        token_ids, segment_ids, positions: int tensors (B, T), see `data.packed_dataset`.

    Returns:
        Float tensor (B, T, D).

    Raises:
        InputError: if a layer of a composed model would mix the segments.
    """
    same = ops.equal(ops.expand_dims(segment_ids, 2), ops.expand_dims(segment_ids, 1))
    mask = ops.logical_and(same, causal_mask(positions, positions))
    return models.prediction_states(model, token_ids, positions, mask)
