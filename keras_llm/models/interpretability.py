"""Inspect a model: attention maps, per-layer predictions and token vectors."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers._handler import Rows
from keras_llm.layers.quantization import embedding_table
from keras_llm.models import forward_pass
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.composed_seq2seq import ComposedSeq2Seq
from keras_llm.models.graph import graph_of
from keras_llm.models.seq2seq import Seq2Seq
from keras_llm.models.word_vectors import WordVectors
from keras_llm.types import Tensor


def attention_maps(model: ConfiguredModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Compute the attention probabilities of each layer with self-attention.

    Args:
        model: a model with Transformer blocks or attention layers, of this library or composed, see
            `as_causal_lm`, `as_head_model` and `as_seq2seq`.
        inputs: dict of the model's inputs by name; `token_ids` is (B, T). With only the
            `encoder_token_ids` of an encoder-decoder, its encoder runs alone.

    Returns:
        A list of each layer's attention probabilities, float32 (B, N, T, T), queries in rows.
        Layers of KerasHub and layers whose `call` cannot be traced are left out.

    Raises:
        InputError: if the model has no attention.
    """
    rows = Rows(scores=[])
    if isinstance(model, ConfiguredModel):
        _run(model, inputs, rows)
    if not rows.scores:
        raise InputError(f"`model` has no attention: it is a {type(model).__name__}.")
    return [ops.cast(scores, "float32") for scores in rows.scores]


def cross_attention_maps(model: ConfiguredModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Compute how target tokens attend to source tokens.

    Args:
        model: an encoder-decoder, from `seq2seq` or `as_seq2seq`.
        inputs: dict of `encoder_token_ids`, int (B, S), padded with the config's `pad_id`, and
            `decoder_token_ids`, int (B, T).

    Returns:
        A list of each decoder layer's cross-attention probabilities, float32 (B, N, T, S). Row t
        belongs to the step that reads target token t and predicts the next.

    Raises:
        InputError: if the model is of another kind or has no cross-attention.
    """
    if not isinstance(model, (Seq2Seq, ComposedSeq2Seq)):
        raise InputError(f"`model` must come from seq2seq or as_seq2seq, got {type(model)}.")
    rows = Rows(cross_scores=[])
    _run(model, inputs, rows)
    if not rows.cross_scores:
        raise InputError("`model` has no cross-attention.")
    return [ops.cast(scores, "float32") for scores in rows.cross_scores]


def _run(model, inputs, rows):
    """Run all calls of a model that depend only on inputs that are given, by name."""
    graph = graph_of(model)
    names = [x.name for x in model.inputs]
    if len(names) == 1 and names[0] not in inputs:  # a composed model may have any name
        names = ["token_ids"]
    pairs = list(zip(names, graph.inputs, strict=True))
    missing = graph.depending_on([index for name, index in pairs if name not in inputs])
    calls = [call for call in graph.calls if missing.isdisjoint(call.outputs)]
    values = {
        index: ops.convert_to_tensor(inputs[name], graph.specs[index].dtype)
        for name, index in pairs
        if name in inputs
    }
    return graph.run(calls, values, rows)


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
    model: ConfiguredModel, inputs: dict[str, Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Express a model with a head as a function of its token embeddings.

    Args:
        model: a model with a head, of this library or composed.
        inputs: dict of the model's inputs by name, arrays of one row.

    Returns:
        The embeddings, a float tensor (1, T, D), and a function from embeddings (B, T, D) to the
        output of the model.

    Raises:
        InputError: if not exactly one layer of a composed model embeds the token ids.
    """
    graph = graph_of(model)
    embedding = _embedding(graph)
    given = {
        index: ops.convert_to_tensor(inputs[x.name], x.dtype)
        for x, index in zip(model.inputs, graph.inputs, strict=True)
    }
    before = graph.calls[: graph.calls.index(embedding) + 1]
    others = [call for call in graph.calls if call is not embedding]
    place, output = embedding.outputs[0], graph.outputs[0]

    def outputs(x):
        values = {
            index: ops.broadcast_to(value, (ops.shape(x)[0], *value.shape[1:]))
            for index, value in given.items()
        }
        return graph.run(others, values | {place: x})[output]

    return graph.run(before, dict(given))[place], outputs


def token_table(model: ConfiguredModel) -> np.ndarray:
    """Return the token vectors of any model, a float array (V, D).

    Raises:
        InputError: if a composed model has no single layer that embeds its token ids.
    """
    if isinstance(model, WordVectors):
        return ops.convert_to_numpy(embedding_table(model.get_layer("word_embedding")))
    operation = _embedding(graph_of(model)).operation
    layer = getattr(operation, "token_embedding", operation)
    if not isinstance(layer, keras.layers.Embedding):
        raise InputError(f"`model` has no token vectors: {layer.name!r} is no embedding.")
    return ops.convert_to_numpy(embedding_table(layer))


def _embedding(graph):
    """Return the call that maps token ids to vectors (B, T, D)."""
    own = graph.depending_on(graph.inputs[:1]) - graph.depending_on(graph.inputs[1:])
    vectors = {
        index
        for index, spec in graph.specs.items()
        if len(spec.shape) == 3 and spec.shape[-1] and keras.backend.is_float_dtype(spec.dtype)
    }
    first = [
        call
        for call in graph.calls
        if own.issuperset(call.outputs)
        and vectors.intersection(call.outputs)
        and vectors.isdisjoint(call.inputs)
    ]
    first = [call for call in first if isinstance(call.operation, keras.layers.Layer)] or first
    if len(first) != 1:
        names = ", ".join(call.name for call in first) or "none"
        raise InputError(f"`model` must have one layer that embeds token ids; it has {names}.")
    return first[0]
