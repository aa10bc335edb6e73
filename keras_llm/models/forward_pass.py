"""Build a model's layers from its config and compose its graph.

`forward` and `forward_cached` run that graph on packed rows and with a cache.
"""

from collections.abc import Callable, Iterator

import keras
from keras import ops

from keras_llm.layers import (
    PositionEmbedding,
    RelativeBias,
    RelativePositionBias,
    SinePositionEncoding,
    TransformerEncoder,
)
from keras_llm.layers._block import PLAIN_ARGUMENTS
from keras_llm.layers.relative import shared_bias
from keras_llm.models.config import TransformerConfig
from keras_llm.types import Tensor


def embedding_layers(config: TransformerConfig, dtype: str | None) -> Iterator[keras.layers.Layer]:
    """Create the embedding layers of a config.

    These are `token_embedding` and, as configured, `position_embedding`, `segment_embedding`,
    `embedding_norm` and `embedding_dropout`.
    """
    yield keras.layers.ReversibleEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        tie_weights=config.tie_embeddings,
        embeddings_initializer=_initializer(config),
        logit_soft_cap=config.final_soft_cap,
        dtype=dtype,
        name="token_embedding",
    )
    if config.position == "learned":
        yield PositionEmbedding(
            config.max_length,
            initializer=_initializer(config),
            dtype=dtype,
            name="position_embedding",
        )
    if config.position == "sinusoidal":
        yield SinePositionEncoding(dtype=dtype, name="position_embedding")
    if getattr(config, "num_segments", 0):
        yield keras.layers.Embedding(
            config.num_segments,
            config.hidden_dim,
            embeddings_initializer=_initializer(config),
            dtype=dtype,
            name="segment_embedding",
        )
    if getattr(config, "embedding_norm", False):
        yield _norm(config, dtype, "embedding_norm")
    if config.dropout:
        yield keras.layers.Dropout(config.dropout, dtype=dtype, name="embedding_dropout")


def block_layers(
    config: TransformerConfig,
    dtype: str | None,
    block_class: type[keras.layers.Layer],
    count: int,
    prefix: str = "",
) -> Iterator[keras.layers.Layer]:
    """Create the blocks and the layers around them.

    These are `<prefix>relative_bias` for relative positions, `<prefix>block_<i>`, and
    `<prefix>final_norm` unless every block ends with a norm.
    """
    if isinstance(config.position, RelativeBias):
        yield RelativePositionBias(
            config.position.num_buckets,
            config.position.max_distance,
            bidirectional=block_class is TransformerEncoder,
            num_heads=config.num_heads,
            embeddings_initializer=_initializer(config),
            dtype=keras.dtype_policies.get(dtype).variable_dtype,
            name=f"{prefix}relative_bias",
        )
    shared = {name: getattr(config, name) for name in PLAIN_ARGUMENTS if hasattr(config, name)}
    for i in range(count):
        window = config.window(i)
        own = {"sliding_window": window, "num_sink_tokens": config.num_sink_tokens if window else 0}
        yield block_class(
            **{**shared, **own},
            activation=config.activation,
            layer_norm_epsilon=config.norm_epsilon,
            kernel_initializer=_initializer(config),
            normalize_first=config.norm_position != "post",
            sandwich_norm=config.norm_position == "sandwich",
            position=config.attention_position(i),
            dtype=dtype,
            name=f"{prefix}block_{i}",
        )
    if config.norm_position != "post":
        yield _norm(config, dtype, f"{prefix}final_norm")


def embed(
    layer: Callable[[str], keras.layers.Layer],
    config: TransformerConfig,
    token_ids: Tensor,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Embed token ids (B, T) as vectors (B, T, D). `layer` returns a layer by its name."""
    x = layer("token_embedding")(token_ids)
    if config.embedding_scale is not None:
        x = x * config.embedding_scale
    if config.position in ("learned", "sinusoidal"):
        x = x + layer("position_embedding")(x)
    if segment_ids is not None:
        x = x + layer("segment_embedding")(segment_ids)
    if getattr(config, "embedding_norm", False):
        x = layer("embedding_norm")(x)
    return layer("embedding_dropout")(x) if config.dropout else x


def run_encoder(
    layer: Callable[[str], keras.layers.Layer],
    config: TransformerConfig,
    x: Tensor,
    padding_mask: Tensor,
    token_ids: Tensor,
    count: int,
    prefix: str = "",
) -> Tensor:
    """Run vectors (B, T, D) through the encoder blocks."""
    bias = _own_bias(layer, config, prefix, token_ids)
    for i in range(count):
        x = layer(f"{prefix}block_{i}")(x, padding_mask=padding_mask, attention_bias=bias)
    return x if config.norm_position == "post" else layer(f"{prefix}final_norm")(x)


def run_decoder(
    layer: Callable[[str], keras.layers.Layer],
    config: TransformerConfig,
    x: Tensor,
    token_ids: Tensor,
    count: int,
    prefix: str = "",
    encoder_sequence: Tensor | None = None,
    encoder_padding_mask: Tensor | None = None,
) -> Tensor:
    """Run vectors (B, T, D) through the decoder blocks."""
    arguments = {"attention_bias": _own_bias(layer, config, prefix, token_ids)}
    if encoder_sequence is not None:
        arguments["encoder_sequence"] = encoder_sequence
        arguments["encoder_padding_mask"] = encoder_padding_mask
    for i in range(count):
        x = layer(f"{prefix}block_{i}")(x, **arguments)
    return x if config.norm_position == "post" else layer(f"{prefix}final_norm")(x)


def logits(
    layer: Callable[[str], keras.layers.Layer], config: TransformerConfig, hidden: Tensor
) -> Tensor:
    """Map hidden states (B, T, D) to float32 logits (B, T, V)."""
    return layer("logits")(layer("token_embedding")(scaled(config, hidden), reverse=True))


def scaled(config: TransformerConfig, hidden: Tensor) -> Tensor:
    """Multiply hidden states by the config's `logit_scale`."""
    if config.logit_scale is None:
        return hidden
    return hidden * config.logit_scale


def logits_layer() -> keras.layers.Layer:
    """Create the last layer of a language model, which casts logits to float32."""
    return keras.layers.Activation("linear", dtype="float32", name="logits")


def _initializer(config):
    return keras.initializers.RandomNormal(stddev=config.initializer_range)


def _norm(config, dtype, name):
    norm = (
        keras.layers.RMSNormalization if config.norm == "rms" else keras.layers.LayerNormalization
    )
    return norm(epsilon=config.norm_epsilon, dtype=dtype, name=name)


def _own_bias(layer, config, prefix, token_ids):
    """Compute the bias of a `RelativeBias`, shared by all blocks, or None."""
    if not isinstance(config.position, RelativeBias):
        return None
    row = ops.max(token_ids, axis=0, keepdims=True)  # T may be unknown
    positions = ops.cumsum(ops.ones_like(row), axis=1) - 1
    return shared_bias(layer(f"{prefix}relative_bias"), positions, positions)
