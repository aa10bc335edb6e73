"""Decoder-only language models, and the two functions that every use of one goes through."""

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers import (
    PositionEmbedding,
    TransformerDecoder,
    causal_mask,
    empty_cache,
)
from keras_llm.models.config import CausalLMConfig


@keras.saving.register_keras_serializable("keras_llm")
class CausalLM(keras.Model):
    """A functional model from token ids (B, T) to next-token logits (B, T, V).

    Its layers are `token_embedding`, `position_embedding` (learned positions only),
    `block_0 .. block_<L-1>`, `final_norm` and `logits`; `get_layer(name)` returns each. Made by
    `causal_lm`.

    Attributes:
        config: the `CausalLMConfig` it was built from.
    """

    def __init__(self, config, name="causal_lm", dtype=None, **kwargs):
        if isinstance(config, dict):
            config = CausalLMConfig.from_dict(config)
        layers = {layer.name: layer for layer in _layers(config, dtype)}
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        hidden, _ = _hidden(layers.get, config, token_ids)
        logits = _logits(layers.get, hidden)
        super().__init__(inputs=token_ids, outputs=logits, name=name, **kwargs)
        self.config = config
        self._dtype_name = dtype

    def get_config(self):
        return {"config": self.config.to_dict(), "name": self.name, "dtype": self._dtype_name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def causal_lm(config, dtype=None):
    """Build a decoder-only language model with fresh weights.

    Args:
        config: a `CausalLMConfig`.
        dtype: Keras dtype policy of all layers, e.g. "mixed_bfloat16". Defaults to the
            global policy.

    Returns:
        A `keras.Model` from int token ids (B, T) to float32 logits (B, T, V).

    Raises:
        InputError: if `config` is not a `CausalLMConfig`.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> tuple(model(np.zeros((2, 7), "int32")).shape)
    (2, 7, 512)
    """
    if not isinstance(config, CausalLMConfig):
        raise InputError(f"causal_lm: `config` must be a CausalLMConfig, got {type(config)}.")
    return CausalLM(config, dtype=dtype)


def init_cache(model, batch_size=1, length=None):
    """An empty key-value cache.

    Args:
        model: a model from `causal_lm`.
        batch_size: int or int scalar tensor. B.
        length: int or int scalar tensor. S slots a row; defaults to the model's
            `max_length`.

    Returns:
        A dict with `k_<i>` and `v_<i>` for each layer `i`, float tensors (B, K, S, H) in the
        model's compute dtype.
    """
    config = model.config
    cache = {}
    for i in range(config.num_layers):
        cache[f"k_{i}"], cache[f"v_{i}"] = empty_cache(
            batch_size,
            config.max_length if length is None else length,
            config.num_key_value_heads,
            config.head_dim,
            dtype=model.get_layer(f"block_{i}").compute_dtype,
        )
    return cache


def prefill(model, token_ids, lengths, cache):
    """Read prompts into the cache.

    Args:
        model: a model from `causal_lm`.
        token_ids: int tensor (B, T), padded on the right.
        lengths: int tensor (B,), the number of real tokens of each row, in `1 .. T`.
        cache: from `init_cache`, with at least T slots.

    Returns:
        Float32 logits (B, V) at each row's last real token, and the cache.

    Raises:
        InputError: if the cache has fewer than T slots.
    """
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    length, slots = token_ids.shape[1], cache["k_0"].shape[2]
    if length is not None and slots is not None and length > slots:
        raise InputError(f"prefill: `token_ids` has {length} tokens, `cache` only {slots} slots.")
    hidden, cache = forward_cached(
        model, token_ids, ops.arange(ops.shape(token_ids)[1]), cache, ops.convert_to_tensor(0)
    )
    last = ops.reshape(ops.convert_to_tensor(lengths, "int32") - 1, (-1, 1, 1))
    hidden = ops.take_along_axis(hidden, last, axis=1)
    return ops.squeeze(logits_of(model, hidden), 1), cache


def decode(model, token_ids, positions, cache):
    """Read one token a row and predict the next.

    Args:
        model: a model from `causal_lm`.
        token_ids: int tensor (B, 1).
        positions: int tensor (B, 1), where each row's token stands; it is written into that
            slot of the cache, and slots up to it are attended to.
        cache: from `prefill` or `decode`.

    Returns:
        Float32 logits (B, V), and the cache.
    """
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    positions = ops.convert_to_tensor(positions, "int32")
    index = ops.squeeze(positions, 1)
    hidden, cache = forward_cached(model, token_ids, positions, cache, index)
    return ops.squeeze(logits_of(model, hidden), 1), cache


def forward_cached(model, token_ids, positions, cache, cache_update_index, attention_mask=None):
    """The step under `prefill`, `decode` and exported graphs.

    Args:
        model: a model from `causal_lm`.
        token_ids: int tensor (B, T).
        positions: int tensor (T,) or (B, T).
        cache: dict from `init_cache`.
        cache_update_index: int tensor, scalar or (B,), the slot of the first token.
        attention_mask: bool tensor (B, T, S), True = may attend. Defaults to the causal mask
            of `positions`.

    Returns:
        Float hidden states (B, T, D), normalised for the head, and the updated cache.
    """
    if attention_mask is None:
        slots = ops.arange(ops.shape(cache["k_0"])[2])
        attention_mask = causal_mask(positions, slots)
    return _hidden(
        model.get_layer,
        model.config,
        token_ids,
        positions=positions,
        attention_mask=attention_mask,
        cache=cache,
        cache_update_index=cache_update_index,
    )


def logits_of(model, hidden):
    """Hidden states (B, T, D) from `forward_cached` -> float32 logits (B, T, V)."""
    return _logits(model.get_layer, hidden)


def _layers(config, dtype):
    """The layers of the model, in order."""

    def initializer():
        return keras.initializers.RandomNormal(stddev=config.initializer_range)

    yield keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        tie_weights=config.tie_embeddings,
        embeddings_initializer=initializer(),
        logit_soft_cap=config.final_soft_cap,
        dtype=dtype,
        name="token_embedding",
    )
    if config.position == "learned":
        yield PositionEmbedding(
            config.max_length, initializer=initializer(), dtype=dtype, name="position_embedding"
        )
    if config.dropout:
        yield keras.layers.Dropout(config.dropout, dtype=dtype, name="embedding_dropout")
    for i in range(config.num_layers):
        yield TransformerDecoder(
            config.intermediate_dim,
            config.num_heads,
            dropout=config.dropout,
            activation=config.activation,
            layer_norm_epsilon=config.norm_epsilon,
            kernel_initializer=initializer(),
            normalize_first=True,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            position=None if config.position == "learned" else config.position,
            norm=config.norm,
            gated=config.gated,
            sliding_window=config.sliding_window,
            logit_soft_cap=config.logit_soft_cap,
            qk_norm=config.qk_norm,
            use_bias=config.use_bias,
            dtype=dtype,
            name=f"block_{i}",
        )
    norm = (
        keras.layers.RMSNormalization if config.norm == "rms" else keras.layers.LayerNormalization
    )
    yield norm(epsilon=config.norm_epsilon, dtype=dtype, name="final_norm")
    yield keras.layers.Activation("linear", dtype="float32", name="logits")


def _hidden(
    layer,
    config,
    token_ids,
    positions=None,
    attention_mask=None,
    cache=None,
    cache_update_index=None,
):
    """Token ids -> hidden states, normalised for the head. The one forward pass: the functional
    graph is traced through it without a cache, generation and export call it with one."""
    x = layer("token_embedding")(token_ids)
    if config.position == "learned":
        x = x + layer("position_embedding")(x, positions=positions)
    if config.dropout:
        x = layer("embedding_dropout")(x)
    updated = {}
    for i in range(config.num_layers):
        block = layer(f"block_{i}")
        if cache is None:
            x = block(x)
            continue
        x, (updated[f"k_{i}"], updated[f"v_{i}"]) = block(
            x,
            decoder_attention_mask=attention_mask,
            self_attention_cache=(cache[f"k_{i}"], cache[f"v_{i}"]),
            self_attention_cache_update_index=cache_update_index,
            use_causal_mask=False,
            positions=positions,
        )
    return layer("final_norm")(x), updated


def _logits(layer, hidden):
    return layer("logits")(layer("token_embedding")(hidden, reverse=True))
