"""What a model weighs."""

import math

import keras
import numpy as np


def summarize(model):
    """Count a model's parameters and memory.

    Args:
        model: a model from `causal_lm`.

    Returns:
        A dict: `config`; `layers`, a list of rows with `name`, `class` and `parameters`; and in
        all `parameters`, `weight_bytes`, and the bytes of the key-value cache of one row,
        `cache_bytes_per_token` and `cache_bytes_at_max_length`.
    """
    config = model.config
    layers = [
        {"name": layer.name, "class": type(layer).__name__, "parameters": layer.count_params()}
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    cache_bytes = 0
    for i in range(config.num_layers):
        values = 2 * config.num_key_value_heads * config.head_dim
        cache_bytes += values * np.dtype(model.get_layer(f"block_{i}").compute_dtype).itemsize
    return {
        "config": config.to_dict(),
        "layers": layers,
        "parameters": model.count_params(),
        "weight_bytes": sum(math.prod(w.shape) * np.dtype(w.dtype).itemsize for w in model.weights),
        "cache_bytes_per_token": cache_bytes,
        "cache_bytes_at_max_length": cache_bytes * config.max_length,
    }
