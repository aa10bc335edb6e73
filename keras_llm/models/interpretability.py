"""Inspect a model: attention maps, per-layer predictions and token vectors."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers.quantization import embedding_table
from keras_llm.models import forward_pass
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.causal_lm import CausalLM, forward
from keras_llm.models.config import CausalLMConfig
from keras_llm.models.heads import HeadModel
from keras_llm.models.seq2seq import Seq2Seq, hidden_states
from keras_llm.types import Tensor


def attention_maps(
    model: CausalLM | HeadModel | Seq2Seq, inputs: dict[str, Tensor]
) -> list[Tensor]:
    """Compute the attention probabilities of each block.

    Args:
        model: a model from `causal_lm`, one with a head, or one from `seq2seq` (its encoder).
        inputs: dict of the model's inputs by name; `token_ids` is (B, T).

    Returns:
        A list of each block's attention probabilities, float32 (B, N, T, T), queries in rows.

    Raises:
        InputError: if the model has no attention.
    """
    token_ids = ops.convert_to_tensor(inputs.get("token_ids", inputs.get("encoder_token_ids")))
    if isinstance(model, CausalLM):
        return forward(model, token_ids, return_attention_scores=True)[1]
    if not isinstance(model, (HeadModel, Seq2Seq)):
        raise InputError(f"`model` has no attention: it is a {type(model).__name__}.")
    config = model.config
    scores: list[Tensor] = []
    if isinstance(model, Seq2Seq):
        pad_id = model.config.pad_id
        layer, mask, prefix = model.get_layer, ops.not_equal(token_ids, pad_id), "encoder_"
        x = forward_pass.embed(layer, config, token_ids)
    else:
        layer, mask, prefix = model.get_layer("backbone").get_layer, inputs["padding_mask"], ""
        x = forward_pass.embed(layer, config, token_ids, None, inputs.get("segment_ids"))
    if isinstance(config, CausalLMConfig):
        forward_pass.run_decoder(layer, config, x, token_ids, config.num_layers, scores=scores)
    else:
        forward_pass.run_encoder(
            layer, config, x, mask, token_ids, config.num_layers, prefix, scores
        )
    return scores


def cross_attention_maps(model: Seq2Seq, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Compute how target tokens attend to source tokens.

    Args:
        model: a model from `seq2seq`.
        inputs: dict of `encoder_token_ids`, int (B, S), padded with the config's `pad_id`, and
            `decoder_token_ids`, int (B, T).

    Returns:
        A list of each decoder block's cross-attention probabilities, float32 (B, N, T, S). Row t
        belongs to the step that reads target token t and predicts the next.

    Raises:
        InputError: if the model does not come from `seq2seq`.
    """
    if not isinstance(model, Seq2Seq):
        raise InputError(f"`model` must come from seq2seq, got {type(model)}.")
    sides = [inputs[f"{side}_token_ids"] for side in ("encoder", "decoder")]
    scores: list[Tensor] = []
    sources, targets = map(ops.convert_to_tensor, sides)
    hidden_states(model.get_layer, model.config, sources, targets, scores)
    return scores


def logit_lens(model: CausalLM, token_ids: Tensor) -> Tensor:
    """Compute the logits that each layer's hidden states would give.

    The final norm and the head are applied to the embeddings and to the output of each block.

    Args:
        model: a model from `causal_lm`.
        token_ids: int tensor (B, T).

    Returns:
        Float32 tensor (L + 1, B, T, V); the last entry holds the logits of the model.

    Raises:
        InputError: if the model does not come from `causal_lm`.

    Reference:
        nostalgebraist, 2020, "interpreting GPT: the logit lens".
    """
    if not isinstance(model, CausalLM):
        raise InputError(f"`model` must come from causal_lm, got {type(model)}.")
    config, layer = model.config, model.get_layer
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    blocks = [layer(f"block_{i}").output for i in range(config.num_layers)]
    states = keras.Model(model.inputs, blocks)(token_ids)
    states = [forward_pass.embed(layer, config, token_ids), *keras.tree.flatten(states)]
    if config.norm_position != "post":
        states = [layer("final_norm")(x) for x in states]
    return ops.stack([forward_pass.logits(layer, config, x) for x in states])


def from_embeddings(
    model: HeadModel, inputs: dict[str, Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Express a model with a head as a function of its input embeddings.

    Args:
        model: a model with a head.
        inputs: dict of the model's inputs by name, arrays of one row.

    Returns:
        The embeddings, a float tensor (1, T, D), and a function from embeddings (B, T, D) to the
        output of the model.
    """
    config, layer = model.config, model.get_layer("backbone").get_layer
    token_ids, mask = (ops.convert_to_tensor(inputs[k]) for k in ("token_ids", "padding_mask"))
    x = forward_pass.embed(layer, config, token_ids, None, inputs.get("segment_ids"))
    head = keras.Model([model.hidden, model.inputs[1]], model.outputs)

    def outputs(x):
        ids, masks = (
            ops.broadcast_to(row, (ops.shape(x)[0], row.shape[1])) for row in (token_ids, mask)
        )
        if isinstance(config, CausalLMConfig):
            hidden = forward_pass.run_decoder(layer, config, x, ids, config.num_layers)
        else:
            hidden = forward_pass.run_encoder(layer, config, x, masks, ids, config.num_layers)
        (result,) = keras.tree.flatten(head([hidden, masks]))
        return result

    return x, outputs


def token_table(model: ConfiguredModel) -> np.ndarray:
    """Return the token vectors of any model, a float array (V, D)."""
    name = "word_embedding" if hasattr(model.config, "objective") else "token_embedding"
    holder = model.get_layer("backbone") if isinstance(model, HeadModel) else model
    return ops.convert_to_numpy(embedding_table(holder.get_layer(name)))
