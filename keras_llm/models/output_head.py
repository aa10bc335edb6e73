"""Split a model into the hidden states that logits are computed from and the output head."""

import dataclasses
from collections.abc import Sequence

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers.quantization import embedding_table
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.composed import ComposedLM
from keras_llm.models.composed_seq2seq import ComposedSeq2Seq
from keras_llm.models.forward import rows_of
from keras_llm.models.graph import graph_of, split_head, undivided_graph_of
from keras_llm.models.heads import HeadModel
from keras_llm.models.seq2seq import Seq2Seq
from keras_llm.types import Tensor


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """The parameters of an output head, `logits = softcap(states kernel + bias)`.

    Attributes:
        kernel: float tensor (D, V); None if the states are the logits.
        bias: float tensor (V,) or None.
        soft_cap: float or None.
        trainable: bool. Whether any weight of the kernel is trainable.
    """

    kernel: Tensor | None
    bias: Tensor | None = None
    soft_cap: float | None = None
    trainable: bool = True


def has_token_head(model: ConfiguredModel) -> bool:
    """Return whether the model predicts tokens, as `prediction_states` and `output_head` need."""
    return (
        isinstance(model, (CausalLM, Seq2Seq, ComposedLM, ComposedSeq2Seq))
        or getattr(model, "head", None) == "masked_lm"
    )


def prediction_states(
    model: ConfiguredModel,
    inputs: Tensor | Sequence[Tensor] | dict[str, Tensor],
    positions: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Compute the hidden states that the output head maps to logits.

    Args:
        model: a model from `causal_lm`, `seq2seq` or `masked_lm`, or a composed language model.
        inputs: the inputs of the model.
        positions, attention_mask: as in `forward`, for a decoder only.

    Returns:
        Float tensor (B, T, D), or (B, M, D) for a `masked_lm` model.

    Raises:
        InputError: if the model does not predict tokens.
    """
    if not has_token_head(model):
        raise InputError(
            "`model` must come from causal_lm, seq2seq or masked_lm to predict tokens, got "
            f"{getattr(model, 'head', type(model).__name__)}."
        )
    inputs = _as_list(model, inputs)
    if isinstance(model, HeadModel):
        layer, (*inputs, mask_positions) = model.get_layer, inputs
        return layer("masked_lm_head").states(layer("backbone")(inputs), mask_positions)
    rows = rows_of(model, positions, attention_mask)
    return _HeadOfGraph(model).states(inputs, rows)


def output_head(model: ConfiguredModel) -> OutputHead:
    """Return the `OutputHead` of a model with a token head, in the head's compute dtype."""
    if not isinstance(model, HeadModel):
        return _HeadOfGraph(model).output_head()
    head = model.get_layer("masked_lm_head")
    return _reversed_embedding(head.token_embedding, ops.convert_to_tensor(head.bias))


class _HeadOfGraph:
    """The output head of a language model.

    If the model ends with a plain dense layer or a reversed embedding, logits are computed in
    chunks from its inputs; else the states are the logits.
    """

    def __init__(self, model):
        self._model = model
        self._graph = undivided_graph_of(model)
        _, head = split_head(self._graph, self._graph.calls)
        layers = [call.operation for call in head]
        self._projection = layers[0] if layers else None
        if not (_is_projection(self._projection) and all(map(_keeps_values, layers[1:]))):
            self._projection = None

    def states(self, inputs, rows):
        graph = graph_of(self._model) if rows.is_packed else self._graph
        calls, index = graph.calls, graph.outputs[0]
        if rows.is_packed:
            graph.check_training()
        if self._projection is not None:
            index, head = split_head(graph, calls)
            calls = [call for call in calls if call not in head]
        values = dict(zip(graph.inputs, inputs, strict=True))
        states = graph.run(calls, values, rows if rows.is_packed else None)[index]
        if self._projection is None:
            return states
        return ops.cast(states, self._projection.compute_dtype)

    def output_head(self):
        layer = self._projection
        if layer is None:
            return OutputHead(None)
        if not isinstance(layer, keras.layers.Dense):
            return _reversed_embedding(layer)
        bias = None if layer.bias is None else ops.convert_to_tensor(layer.bias)
        kernel = ops.cast(layer.kernel, layer.compute_dtype)
        return OutputHead(kernel, bias, None, bool(layer.trainable_weights))


def _reversed_embedding(layer, bias=None):
    kernel = ops.cast(_kernel(layer), layer.compute_dtype)
    return OutputHead(kernel, bias, layer.logit_soft_cap, bool(layer.trainable_weights))


def _is_projection(layer):
    call = getattr(type(layer), "call", None)  # a subclass may have its own
    if call is keras.layers.Dense.call:
        plain = layer.activation is keras.activations.linear
        plain = plain and layer.activity_regularizer is None
        return plain and layer.quantization_mode is None and layer.kernel_constraint is None
    return call is keras.layers.ReversibleEmbedding.call


def _keeps_values(layer):
    return isinstance(layer, keras.layers.Activation) and (
        layer.activation is keras.activations.linear
    )


def _kernel(embedding):
    """Return the kernel (D, V) that maps states to logits; a quantized one is dequantized."""
    if embedding.tie_weights:
        return ops.transpose(embedding_table(embedding))
    if embedding.quantization_mode is None:
        return ops.convert_to_tensor(embedding.reverse_embeddings)
    soft_cap, embedding.logit_soft_cap = embedding.logit_soft_cap, None
    try:  # the logits of unit vectors
        return embedding(ops.eye(embedding.output_dim, dtype=embedding.compute_dtype), reverse=True)
    finally:
        embedding.logit_soft_cap = soft_cap


def _as_list(model, inputs):
    if isinstance(inputs, dict):
        return [inputs[tensor.name] for tensor in model.inputs]
    return list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
