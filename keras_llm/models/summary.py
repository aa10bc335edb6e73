"""Estimate the size and cost of a model from its config without allocating weights."""

import math

import keras

from keras_llm.errors import InputError
from keras_llm.keras_internals import flatten_layers, own_weights
from keras_llm.layers import MixtureOfExperts
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.composed import ComposedLM, ComposedModel
from keras_llm.models.composed_seq2seq import ComposedSeq2Seq
from keras_llm.models.config import Seq2SeqConfig, TransformerConfig, WordVectorsConfig
from keras_llm.models.decoder import decoder_of, itemsize
from keras_llm.models.deferred import shapes_only
from keras_llm.models.graph import Graph, sized
from keras_llm.models.seq2seq import Seq2Seq
from keras_llm.models.serialization import build, restore
from keras_llm.types import JSON


def summarize(
    model: ConfiguredModel | TransformerConfig | WordVectorsConfig | JSON, dtype: str | None = None
) -> JSON:
    """Count the parameters, memory and FLOPs of a model.

    Args:
        model: a model of this library, a config, or a dict from `describe`. Configs and dicts are
            measured without allocating weights, so that a large model takes about a second.
        dtype: Keras dtype policy for a config.

    Returns:
        A dict with `config`; `layers`, a list of dicts with `name`, `class` and `parameters`;
        and the totals `parameters` and `weight_bytes`.

        For a Transformer also `flops_per_token`, the cost of the weights in the forward pass of one
        token (for an encoder-decoder, one token on each side), counting a multiply-add as two, and
        `attention_flops_per_token`, the cost of scores and weighted sums at the maximum length.

        For a composed model `flops_per_token` only. Layers after a pooling are counted for each
        token, too.

        For a decoder also the size of the key-value cache of one row: `cache_bytes_per_token`
        while the cache of every layer still grows, and `cache_bytes_at_max_length`.
    """
    if isinstance(model, keras.Model):
        return _summarize(model)

    def measure():
        return _summarize(restore(model) if isinstance(model, dict) else build(model, dtype=dtype))

    return shapes_only(measure)


def _summarize(model):
    if not isinstance(model, ConfiguredModel):
        raise InputError(
            "summarize: `model` must be a model of this library; `models.as_causal_lm` and the "
            f"constructors of tasks make one of a {type(model).__name__}."
        )
    config = model.config
    layers = [
        {
            "name": layer.name,
            "class": type(layer).__name__,
            "parameters": sum(map(_size, layer.weights)),
        }
        for layer in model.layers
        if layer.weights
    ]
    summary = {
        "config": config.to_dict(),
        "layers": layers,
        "parameters": sum(map(_size, model.weights)),
        "weight_bytes": sum(_size(w) * itemsize(w.dtype) for w in model.weights),
    }
    if isinstance(model, ComposedModel):
        calls = Graph(sized(model, 1, 2), whole=(MixtureOfExperts,)).calls
        summary["flops_per_token"] = sum(map(_flops_of_call, calls))
    is_decoder = isinstance(model, (CausalLM, Seq2Seq, ComposedLM, ComposedSeq2Seq))
    if isinstance(config, TransformerConfig):
        has_token_head = is_decoder or getattr(model, "head", None) == "masked_lm"
        summary["flops_per_token"] = sum(
            _flops(layer)
            for layer in _leaves(model)
            if has_token_head or layer.name != "token_embedding"
        )
        summary["attention_flops_per_token"] = _attention_flops(config)
    if is_decoder:
        decoder = decoder_of(model)
        growth = decoder.cache_bytes(2) - decoder.cache_bytes(1)
        summary["cache_bytes_per_token"] = growth
        summary["cache_bytes_at_max_length"] = decoder.cache_bytes(config.max_length)
    return summary


def _flops_of_call(call):
    operation = call.operation
    if isinstance(operation, (keras.layers.EinsumDense, keras.layers.Conv1D)):
        return 2 * _size(operation.kernel)
    if isinstance(operation, keras.layers.RNN):
        return sum(2 * _size(w) for w in operation.weights if w.name != "bias")
    if isinstance(operation, keras.layers.Embedding):
        is_reversed = call.kwargs.get("reverse", call.args[1:2] == (True,))
        return 2 * operation.input_dim * operation.output_dim if is_reversed else 0
    return _flops(operation)


def _leaves(layer):
    """Yield each sublayer that owns weights once."""
    seen = set()
    for part in flatten_layers(layer):
        if id(part) not in seen and own_weights(part):
            seen.add(id(part))
            yield part


def _flops(layer):
    if isinstance(layer, keras.layers.ReversibleEmbedding):
        return 2 * layer.input_dim * layer.output_dim  # the head; the lookup needs no arithmetic
    if isinstance(layer, keras.layers.Dense):
        return 2 * _size(layer.kernel)
    if isinstance(layer, MixtureOfExperts):
        weights = sum(_size(w) for w in (layer.gate, layer.up, layer.down) if w is not None)
        return 2 * weights * layer.top_k // layer.num_experts
    return 0


def _attention_flops(config):
    """Count the FLOPs of a token that attends to the maximum number of keys in every layer."""
    flops_per_key = 4 * config.num_heads * config.head_dim
    reaches = _reaches(config, config.num_layers)
    if isinstance(config, Seq2SeqConfig):
        reaches += 2 * _reaches(config, config.num_decoder_layers)
    return flops_per_key * sum(min(reach, config.max_length) for reach in reaches)


def _reaches(config, count):
    return [
        config.max_length if config.window(i) is None else config.window(i) + config.num_sink_tokens
        for i in range(count)
    ]


def _size(weight):
    return math.prod(weight.shape)
