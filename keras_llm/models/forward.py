"""Run the graph of a language model on whole rows: packed, or up to its hidden states."""

from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers import causal_mask
from keras_llm.layers._handler import Rows
from keras_llm.models.base import ConfiguredModel, check_model
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.composed import ComposedLM
from keras_llm.models.graph import graph_of
from keras_llm.types import Tensor


def forward(
    model: CausalLM | ComposedLM,
    token_ids: Tensor,
    positions: Tensor | None = None,
    attention_mask: Tensor | None = None,
    return_attention_scores: bool = False,
) -> Tensor | tuple[Tensor, list[Tensor]]:
    """Run the forward pass with custom positions and masks, or return attention probabilities.

    Custom positions and masks support packed and left-padded rows.

    Args:
        model: a model from `causal_lm`, or a composed one from `as_causal_lm`.
        token_ids: int tensor (B, T).
        positions: int tensor (B, T) or (T,), the position of each token within its document.
            Defaults to `0 .. T - 1`.
        attention_mask: bool tensor (B, T, T), True = may attend; must include causality. Defaults
            to the causal mask of `positions`.
        return_attention_scores: bool. Whether to return the attention probabilities too.

    Returns:
        Float32 logits (B, T, V); with `return_attention_scores`, a pair of those and a list with
        the attention probabilities (B, N, T, T) of each attention layer.

    Raises:
        InputError: if `model` is of another kind, or a layer of a composed model would mix the
            documents of a row.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> row = np.array([[5, 6, 7, 8, 9]])  # two documents, of three tokens and of two
    >>> positions = np.array([[0, 1, 2, 0, 1]])
    >>> text = np.array([[0, 0, 0, 1, 1]])
    >>> same = text[:, :, None] == text[:, None]
    >>> causal = positions[:, :, None] >= positions[:, None]
    >>> packed = forward(model, row, positions, same & causal)
    >>> bool(np.allclose(packed[:, 3:], model(row[:, 3:]), atol=1e-4))
    True
    """
    check_model("forward", model, (CausalLM, ComposedLM), "causal_lm or as_causal_lm")
    rows = rows_of(model, positions, attention_mask)
    rows.scores = [] if return_attention_scores else None
    (first,), (last,) = graph_of(model).inputs, graph_of(model).outputs
    values = {first: ops.convert_to_tensor(token_ids, "int32")}
    logits = ops.cast(graph_of(model).run(graph_of(model).calls, values, rows)[last], "float32")
    return (logits, rows.scores) if return_attention_scores else logits


def rows_of(
    model: ConfiguredModel, positions: Tensor | None = None, attention_mask: Tensor | None = None
) -> Rows:
    """Return how the layers of a model run on rows with custom positions and masks.

    Raises:
        InputError: if there are any, and the model is composed with `incremental=False`, so that
            its layers may mix the documents of a row.
    """
    if positions is not None:
        positions = ops.convert_to_tensor(positions, "int32")
        if attention_mask is None:
            attention_mask = causal_mask(positions, positions)
    rows = Rows(positions, attention_mask)
    if rows.is_packed and not getattr(model.config, "incremental", True):
        raise InputError(
            "a model with `incremental=False` does not support packed rows with attention within "
            "segments: its layers might mix the documents of a row."
        )
    return rows
