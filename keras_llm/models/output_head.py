"""Split a model into the hidden states that logits are computed from and the output head."""

import dataclasses
from collections.abc import Sequence

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers.quantization import embedding_table
from keras_llm.models import forward_pass
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.composed import ComposedLM
from keras_llm.models.composed_seq2seq import ComposedSeq2Seq
from keras_llm.models.decoder import decoder_of
from keras_llm.models.seq2seq import Seq2Seq, hidden_states
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
        positions, attention_mask: as in `forward`, for a `causal_lm` model only.

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
    layer = model.get_layer
    inputs = _as_list(model, inputs)
    if isinstance(model, (ComposedLM, ComposedSeq2Seq)):
        if positions is not None or attention_mask is not None:
            raise InputError(
                "a composed model does not support packed rows with attention within segments."
            )
        return _HeadOfGraph(model).states(inputs)
    if isinstance(model, CausalLM):
        hidden = forward_pass.run_decoder(
            layer,
            model.config,
            forward_pass.embed(layer, model.config, inputs[0], positions),
            inputs[0],
            model.config.num_layers,
            positions=positions,
            attention_mask=attention_mask,
        )
        return forward_pass.scaled(model.config, hidden)
    if isinstance(model, Seq2Seq):
        return forward_pass.scaled(model.config, hidden_states(layer, model.config, *inputs))
    *inputs, mask_positions = inputs
    return layer("masked_lm_head").states(layer("backbone")(inputs), mask_positions)


def output_head(model: ConfiguredModel) -> OutputHead:
    """Return the `OutputHead` of a model with a token head, in the head's compute dtype."""
    if isinstance(model, (ComposedLM, ComposedSeq2Seq)):
        return _HeadOfGraph(model).output_head()
    if isinstance(model, (CausalLM, Seq2Seq)):
        embedding, bias = model.get_layer("token_embedding"), None
    else:
        head = model.get_layer("masked_lm_head")
        embedding, bias = head.token_embedding, ops.convert_to_tensor(head.bias)
    kernel = ops.cast(_kernel(embedding), embedding.compute_dtype)
    trainable = bool(embedding.trainable_weights)
    return OutputHead(kernel, bias, embedding.logit_soft_cap, trainable)


class _HeadOfGraph:
    """The output head of a composed model.

    If the model ends with a plain dense layer or a reversed embedding, logits are computed in
    chunks from its inputs; else the states are the logits.
    """

    def __init__(self, model):
        self._decoder = decoder_of(model)
        layers = [call.operation for call in self._decoder.head]
        self._projection = layers[0] if layers else None
        if not (_is_projection(self._projection) and all(map(_keeps_values, layers[1:]))):
            self._projection = None

    def states(self, inputs):
        graph = self._decoder.graph
        calls, index = self._decoder.before_head, self._decoder.hidden_index
        if self._projection is None:
            calls, index = graph.calls, graph.outputs[0]
        return graph.run(calls, dict(zip(graph.inputs, inputs, strict=True)))[index]

    def output_head(self):
        layer = self._projection
        if layer is None:
            return OutputHead(None)
        dtype, trainable = layer.compute_dtype, bool(layer.trainable_weights)
        if isinstance(layer, keras.layers.Dense):
            bias = None if layer.bias is None else ops.convert_to_tensor(layer.bias)
            return OutputHead(ops.cast(layer.kernel, dtype), bias, None, trainable)
        return OutputHead(ops.cast(_kernel(layer), dtype), None, layer.logit_soft_cap, trainable)


def _is_projection(layer):
    if isinstance(layer, keras.layers.Dense):
        plain = layer.activation is keras.activations.linear
        return plain and layer.quantization_mode is None and layer.kernel_constraint is None
    return isinstance(layer, keras.layers.ReversibleEmbedding)


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
