"""What a model weighs and costs, told from its config without making its weights."""

import math
import threading

import keras
import numpy as np

from keras_llm.layers import MixtureOfExperts
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.config import Seq2SeqConfig
from keras_llm.models.encoder import Encoder
from keras_llm.models.seq2seq import Seq2Seq

_CLASSES = {model.config_class: model for model in (CausalLM, Encoder, Seq2Seq)}


def build(config, dtype=None):
    """The model of a config of any class, with fresh weights: `causal_lm`, `encoder` or
    `seq2seq`."""
    return _CLASSES[type(config)](config, dtype=dtype)


def summarize(model_or_config, dtype=None):
    """Count a model's parameters, memory and arithmetic.

    Args:
        model_or_config: a model from `causal_lm`, `encoder` or `seq2seq`, or a config; of a
            config no weight is allocated, so a large one takes a second.
        dtype: Keras dtype policy for a config.

    Returns:
        A dict: `config`; `layers`, a list of rows with `name`, `class` and `parameters`; and in
        all `parameters`, `weight_bytes`; `flops_per_token`, of one token's forward pass through
        the weights, a multiplication and an addition counted as two (of an encoder-decoder: one
        token on each side); `attention_flops_per_token`, of scores and weighted sums at the
        greatest length; and, of a decoder, the bytes of the key-value cache of one row,
        `cache_bytes_per_token` while it grows in all layers and `cache_bytes_at_max_length`.
    """
    if isinstance(model_or_config, keras.Model):
        return _summarize(model_or_config)
    result = {}

    def measure():
        # Keras keeps variables without a value for the end of the outermost scope; its list of
        # them belongs to this thread and ends with it.
        with keras.StatelessScope(initialize_variables=False):
            result.update(_summarize(build(model_or_config, dtype)))

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return result


def _summarize(model):
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
        "weight_bytes": sum(_size(w) * _bytes(w.dtype) for w in model.weights),
        "flops_per_token": sum(
            _flops(layer)
            for layer in _leaves(model)
            if not (isinstance(model, Encoder) and layer.name == "token_embedding")
        ),
        "attention_flops_per_token": _attention_flops(config),
    }
    if not isinstance(model, Encoder):
        prefix = "decoder_" if isinstance(config, Seq2SeqConfig) else ""
        a_slot = 2 * config.num_key_value_heads * config.head_dim
        a_slot *= _bytes(model.get_layer(f"{prefix}block_0").compute_dtype)
        count = _decoder_layers(config)
        slots = [min(reach, config.max_length) for reach in _reaches(config, count)]
        summary["cache_bytes_per_token"] = a_slot * count
        summary["cache_bytes_at_max_length"] = a_slot * sum(slots)
    return summary


def _leaves(layer):
    """Every layer inside, once, that has weights of its own."""
    seen = set()
    for part in layer._flatten_layers(include_self=False):
        if id(part) not in seen and (part._trainable_variables or part._non_trainable_variables):
            seen.add(id(part))
            yield part


def _flops(layer):
    if isinstance(layer, keras.layers.ReversibleEmbedding):
        return 2 * layer.input_dim * layer.output_dim  # the head; looking up costs nothing
    if isinstance(layer, keras.layers.Dense):
        return 2 * _size(layer.kernel)
    if isinstance(layer, MixtureOfExperts):
        weights = sum(_size(w) for w in (layer.gate, layer.up, layer.down) if w is not None)
        return 2 * weights * layer.top_k // layer.num_experts
    return 0


def _attention_flops(config):
    """Of one token that attends to as much as a layer ever does."""
    a_key = 4 * config.num_heads * config.head_dim
    reaches = _reaches(config, config.num_layers)
    if isinstance(config, Seq2SeqConfig):
        reaches += 2 * _reaches(config, config.num_decoder_layers)
    return a_key * sum(min(reach, config.max_length) for reach in reaches)


def _reaches(config, count):
    return [
        config.max_length if config.window(i) is None else config.window(i) + config.num_sink_tokens
        for i in range(count)
    ]


def _decoder_layers(config):
    return config.num_decoder_layers if isinstance(config, Seq2SeqConfig) else config.num_layers


def _size(weight):
    return math.prod(weight.shape)


def _bytes(dtype):
    return np.dtype(keras.backend.standardize_dtype(dtype)).itemsize
