"""A model without its last matrix product: the states that logits are made from, and the head."""

import dataclasses
import typing

from keras import ops

from keras_llm.errors import InputError
from keras_llm.models import forward_pass
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.seq2seq import Seq2Seq, hidden_states


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """`logits = softcap(states kernel + bias)`.

    Attributes:
        kernel: float tensor (D, V).
        bias: float tensor (V,) or None.
        soft_cap: float or None.
        trainable: bool, whether any weight of the kernel is.
    """

    kernel: typing.Any
    bias: typing.Any = None
    soft_cap: float | None = None
    trainable: bool = True


def has_token_head(model):
    """Whether the model predicts tokens, so that `prediction_states` and `output_head` know it."""
    return isinstance(model, (CausalLM, Seq2Seq)) or getattr(model, "head", None) == "masked_lm"


def prediction_states(model, inputs, positions=None, attention_mask=None):
    """The states that the output head turns into logits.

    Args:
        model: a model from `causal_lm`, `seq2seq` or `masked_lm`.
        inputs: what the model is called with.
        positions, attention_mask: as of `forward`, of a `causal_lm` model alone.

    Returns:
        Float tensor (B, T, D), or (B, M, D) of a `masked_lm` model.

    Raises:
        InputError: if the model predicts no tokens.
    """
    if not has_token_head(model):
        raise InputError(
            "`model` must come from causal_lm, seq2seq or masked_lm to predict tokens, got "
            f"{getattr(model, 'head', type(model).__name__)}."
        )
    config, layer = model.config, model.get_layer
    inputs = _as_list(model, inputs)
    if isinstance(model, CausalLM):
        hidden = forward_pass.decode(
            layer,
            config,
            forward_pass.embed(layer, config, inputs[0], positions),
            inputs[0],
            config.num_layers,
            positions=positions,
            attention_mask=attention_mask,
        )
        return forward_pass.scaled(config, hidden)
    if isinstance(model, Seq2Seq):
        return forward_pass.scaled(config, hidden_states(layer, config, *inputs))
    *inputs, mask_positions = inputs
    return layer("masked_lm_head").states(layer("backbone")(inputs), mask_positions)


def output_head(model):
    """The `OutputHead` of a model with a token head, its tensors in the head's compute dtype."""
    if isinstance(model, (CausalLM, Seq2Seq)):
        embedding, bias = model.get_layer("token_embedding"), None
    else:
        head = model.get_layer("masked_lm_head")
        embedding, bias = head.token_embedding, ops.convert_to_tensor(head.bias)
    kernel = (
        ops.transpose(ops.convert_to_tensor(embedding.embeddings))
        if embedding.tie_weights
        else ops.convert_to_tensor(embedding.reverse_embeddings)
    )
    kernel = ops.cast(kernel, embedding.compute_dtype)
    trainable = bool(embedding.trainable_weights)
    return OutputHead(kernel, bias, embedding.logit_soft_cap, trainable)


def _as_list(model, inputs):
    if isinstance(inputs, dict):
        return [inputs[tensor.name] for tensor in model.inputs]
    return list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
