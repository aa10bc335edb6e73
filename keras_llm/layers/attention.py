"""Compute multi-head attention with grouped key-value heads, positions and an explicit cache."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_llm.keras_internals import implicit_mask
from keras_llm.layers import cache as caches
from keras_llm.layers import flash, masks
from keras_llm.layers._parts import AttentionBase, Initializer, Shape, argument_names, clone, dense
from keras_llm.layers.alibi import Alibi, AlibiBias
from keras_llm.layers.relative import RelativeBias, RelativePositionBias
from keras_llm.layers.rotary import Rotary, RotaryEmbedding
from keras_llm.types import JSON, Tensor

_MASKED = -1e9  # added to a masked score; its softmax is exactly 0 in float32


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    sinks: Tensor | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
    return_probabilities: bool = False,
) -> Any:
    """Compute scaled dot-product attention.

    `output_i = softmax(cap(scale * q_i k_j^T) + bias) v_j`, where query head `i` uses key-value
    head `j = i // (N / K)`, and `cap(x) = c tanh(x / c)` with a `logit_soft_cap` of c. The softmax
    over the S keys is computed in float32.

    Args:
        query: float tensor (B, T, N, H).
        key: float tensor (B, K, S, H), the layout of a cache; K must divide N.
        value: float tensor (B, K, S, H'), where H' may be other than H.
        mask: bool tensor broadcastable to (B, N, T, S), True = may attend. None allows all.
        bias: float tensor broadcastable to (B, N, T, S), added to the scores.
        scale: float. Factor of the scores. Defaults to `1 / sqrt(H)`.
        logit_soft_cap: float or None. Scores become `cap * tanh(scores / cap)`.
        sinks: float tensor (N,). A logit of each head that takes part in the softmax but has no
            value.
        dropout: function that is applied to the probabilities (B, N, T, S), or None.
        return_probabilities: bool. Whether to return the probabilities too.

    Returns:
        Float tensor (B, T, N, H') in the dtype of `query`; with `return_probabilities`, a pair of
        that and the float32 probabilities (B, N, T, S).
    """
    is_plain = all(option is None for option in (bias, logit_soft_cap, sinks, dropout))
    if is_plain and not return_probabilities and flash.is_available():
        return flash.attention(query, key, value, mask, scale)

    batch_size, length = ops.shape(query)[:2]
    num_heads, size = query.shape[2:]
    num_key_value_heads = key.shape[1]
    groups = num_heads // num_key_value_heads
    scale = size**-0.5 if scale is None else scale
    # Fold the query heads that share a key-value head into the time axis: one matmul per key-value
    # head, without repeating keys.
    grouped = (batch_size, length, num_key_value_heads, groups, size)
    query = ops.transpose(ops.reshape(query * scale, grouped), (0, 2, 3, 1, 4))
    query = ops.reshape(query, (batch_size, num_key_value_heads, groups * length, size))
    scores = ops.matmul(query, ops.swapaxes(ops.cast(key, query.dtype), -1, -2))
    scores = ops.reshape(ops.cast(scores, "float32"), (batch_size, num_heads, length, -1))
    if logit_soft_cap is not None:
        scores = logit_soft_cap * ops.tanh(scores / logit_soft_cap)
    if bias is not None:
        scores = scores + ops.cast(bias, "float32")
    if mask is not None:
        scores = scores + (1.0 - ops.cast(mask, "float32")) * _MASKED
    probabilities = _softmax(scores, sinks)

    weights = ops.cast(probabilities, query.dtype)
    if dropout is not None:
        weights = dropout(weights)
    weights = ops.reshape(weights, (batch_size, num_key_value_heads, groups * length, -1))
    output = ops.matmul(weights, ops.cast(value, query.dtype))
    grouped = (batch_size, num_key_value_heads, groups, length, value.shape[-1])
    output = ops.transpose(ops.reshape(output, grouped), (0, 3, 1, 2, 4))
    output = ops.reshape(output, (batch_size, length, num_heads, value.shape[-1]))
    return (output, probabilities) if return_probabilities else output


def _softmax(scores, sinks):
    """Compute the softmax over the scores (B, N, T, S) and an optional logit (N,) of each head."""
    if sinks is None:
        return ops.softmax(scores, axis=-1)
    sinks = ops.reshape(ops.cast(sinks, "float32"), (1, sinks.shape[0], 1, 1))
    largest = ops.maximum(ops.max(scores, axis=-1, keepdims=True), sinks)
    weights = ops.exp(scores - largest)
    return weights / (ops.sum(weights, axis=-1, keepdims=True) + ops.exp(sinks - largest))


@keras.saving.register_keras_serializable("keras_llm")
class MultiHeadAttention(AttentionBase):
    """Multi-head attention within one sequence or from one to another.

    `head_i = softmax(q_i k_j^T / sqrt(H) + bias) v_j`, `output = concat(head_1 .. head_N) W_o`,
    where query head `i` uses key-value head `j = i // (N / K)`. `K = N` is multi-head,
    `K = 1` multi-query and anything between grouped-query attention.

    Args:
        num_heads: int > 0. N query heads.
        head_dim: int > 0. H features per head.
        num_key_value_heads: int. K; must divide N. Defaults to N.
        position: `Rotary(...)`, `Alibi(...)`, `RelativeBias(...)` or None. The position scheme.
        sliding_window: int or None. A query sees keys less than this many positions away.
        logit_soft_cap: float or None. Scores become `cap * tanh(scores / cap)`.
        qk_norm: bool. RMS-normalize each query and key head before positions are applied.
        use_bias: bool. Whether the four projections have a bias.
        dropout: float in [0, 1). Applied to the attention probabilities in training.
        kernel_initializer: Keras initializer of the four kernels.
        bias_initializer: Keras initializer of the four biases.
        layer_norm_epsilon: float. Epsilon of `qk_norm`.
        attention_scale: float. Factor of the scores. Defaults to `1 / sqrt(H)`.
        num_sink_tokens: int. With a sliding window, this many first positions stay visible.
        learned_sinks: bool. Whether each head has a learned logit that takes part in the softmax
            but has no value, so that a head may attend to almost nothing.
        output_bias: bool. Whether the output projection has a bias. Defaults to `use_bias`.

    Call arguments:
        query: float tensor (B, T, D).
        value: float tensor (B, S, D'), the sequence to attend to. Defaults to `query`.
        attention_mask: bool tensor broadcastable to (B, T, S), True = may attend. None
            allows all.
        positions: int tensor (T,) or (B, T), the queries' positions (and the new keys', in
            self-attention). Defaults to `0 .. T - 1`.
        cache: pair of float tensors (B, K, S, H) from `empty_cache`, or None. New keys and
            values are written into it and queries attend to all its slots; slot `s` holds
            position `s`. `attention_mask` then covers the S slots, or only the first of them (at
            least two), in which case the remaining slots are ignored.
        cache_update_index: int tensor, scalar or (B,): the slot of the first new key (see
            `update_cache`). None with a cache only reads the cache (cross-attention).
        use_causal_mask: bool. Whether queries see only keys at their own and earlier positions.
            With a sliding window the cache is then a ring (see `ring_positions`): its S slots
            may be as few as `sliding_window + num_sink_tokens`, and `attention_mask` must be
            None.
        padding_mask: bool tensor (B, S), True = a visible key; with a cache, of all S slots or of
            the T new keys, whose visible ones come first. Defaults to the implicit mask of Keras.
        attention_bias: float tensor broadcastable to (B, N, T, S), added to the scores.
        return_attention_scores: bool. Whether to return the attention probabilities too.

    Returns:
        Float tensor (B, T, D); with `return_attention_scores`, the probabilities (B, N, T, S);
        with a cache, the updated cache. A tuple if there is more than one. With a ring cache and
        T > 1, the probabilities cover the S slots before the update, then the T new keys.

    Raises:
        ValueError: if `num_key_value_heads` does not divide `num_heads`, or an argument is out
            of range.

    References:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.2.
        Ainslie et al., 2023, "GQA: Training Generalized Multi-Query Transformer Models".
        Child et al., 2019, "Generating Long Sequences with Sparse Transformers" and Beltagy et
        al., 2020, "Longformer" (`sliding_window`).
        Xiao et al., 2023, "Efficient Streaming Language Models with Attention Sinks"
        (`num_sink_tokens`); OpenAI, 2025, "gpt-oss model card" (`learned_sinks`).
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_key_value_heads: int | None = None,
        position: Rotary | Alibi | RelativeBias | None = None,
        sliding_window: int | None = None,
        logit_soft_cap: float | None = None,
        qk_norm: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        layer_norm_epsilon: float = 1e-6,
        attention_scale: float | None = None,
        num_sink_tokens: int = 0,
        learned_sinks: bool = False,
        output_bias: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        arguments = locals()
        if num_heads < 1 or head_dim < 1:
            raise ValueError(
                "`num_heads` and `head_dim` must be positive, "
                f"got num_heads={num_heads}, head_dim={head_dim}."
            )
        if num_heads % (num_key_value_heads or num_heads):
            raise ValueError(
                f"`num_key_value_heads` must divide `num_heads`={num_heads}, "
                f"got {num_key_value_heads}."
            )
        if position is not None and not isinstance(position, (Rotary, Alibi, RelativeBias)):
            raise ValueError(
                "`position` must be Rotary(...), Alibi(...), RelativeBias(...) or None, "
                f"got {position!r}."
            )
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(f"`sliding_window` must be a positive int, got {sliding_window}.")
        if num_sink_tokens < 0 or (num_sink_tokens and sliding_window is None):
            raise ValueError(
                "`num_sink_tokens` must be 0, or positive with a `sliding_window`, "
                f"got {num_sink_tokens}."
            )
        for name in _PLAIN_ARGUMENTS:
            setattr(self, name, arguments[name])
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.position = position
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

        self.query_projection = dense(self, num_heads * head_dim, "query")
        self.key_projection = dense(self, self.num_key_value_heads * head_dim, "key")
        self.value_projection = dense(self, self.num_key_value_heads * head_dim, "value")
        self.query_norm = self.key_norm = self.rotary = self.score_bias = self.sinks = None
        if qk_norm:
            self.query_norm, self.key_norm = (
                keras.layers.RMSNormalization(
                    epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name=name
                )
                for name in ("query_norm", "key_norm")
            )
        if isinstance(position, Alibi):
            self.score_bias = AlibiBias(position.max_bias, dtype="float32", name="alibi")
        if isinstance(position, RelativeBias):
            self.score_bias = RelativePositionBias(
                **position.get_config(),
                embeddings_initializer=clone(self.kernel_initializer),
                dtype=self.variable_dtype,  # scores are float32
                name="relative_bias",
            )
        if isinstance(position, Rotary):
            self.rotary = RotaryEmbedding(
                position.base,
                position.scaling,
                fraction=position.fraction,
                dtype=self.dtype_policy,
                name="rotary",
            )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, query_shape: Shape, value_shape: Shape | None = None) -> None:
        value_shape = query_shape if value_shape is None else value_shape
        self.query_projection.build(query_shape)
        self.key_projection.build(value_shape)
        self.value_projection.build(value_shape)
        self.output_projection = dense(self, query_shape[-1], "output", self.output_bias)
        self.output_projection.build((*query_shape[:-1], self.num_heads * self.head_dim))
        if self.query_norm is not None and self.key_norm is not None:
            self.query_norm.build((None, None, self.num_heads, self.head_dim))
            self.key_norm.build((None, None, self.num_key_value_heads, self.head_dim))
        if self.score_bias is not None and not self.score_bias.built:
            self.score_bias.build((None, self.num_heads, None, None))
        if self.learned_sinks:
            self.sinks = self.add_weight(
                name="sinks",
                shape=(self.num_heads,),
                initializer=clone(self.kernel_initializer),
            )
        self.built = True

    def call(
        self,
        query: Tensor,
        value: Tensor | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        cache_update_index: int | Tensor | None = None,
        use_causal_mask: bool = False,
        padding_mask: Tensor | None = None,
        attention_bias: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Tensor | tuple[Any, ...]:
        self_attention = value is None
        is_read_only = cache is not None and cache_update_index is None
        source = query if self_attention else value
        if padding_mask is None and not (self_attention and is_read_only):
            padding_mask = implicit_mask(source)
        if positions is None:
            positions = ops.arange(ops.shape(query)[1])
        q = self._heads(query, self.query_projection, self.num_heads, self.query_norm)
        if self.rotary is not None:
            q = self.rotary(q, positions=positions)
        new: Any = ()
        if not is_read_only:
            new = self.project_keys_and_values(source, positions if self_attention else None)
        if cache is None:
            keys, values = new
            attention_mask = masks.merge(attention_mask, masks.padding_mask(padding_mask))
            key_positions = positions if self_attention else ops.arange(ops.shape(keys)[2])
        elif cache_update_index is not None and use_causal_mask and self.sliding_window:
            if attention_mask is not None:
                raise ValueError(
                    "`attention_mask` is not supported with a ring cache; use "
                    "`use_causal_mask=False` for a cache in which slot s holds position s."
                )
            (keys, values), key_positions, cache = caches.write_ring(
                cache, new, positions, padding_mask, self.num_sink_tokens
            )
            attention_mask = ops.expand_dims(key_positions >= 0, 1)
        else:
            if cache_update_index is not None:
                cache = tuple(
                    caches.update_cache(old, features, cache_update_index)
                    for old, features in zip(cache, new, strict=True)
                )
            width = None if attention_mask is None else attention_mask.shape[-1]
            keys, values = (caches.first_slots(entry, width) for entry in cache)
            key_positions = ops.arange(ops.shape(keys)[2])
            visible = caches.slot_mask(padding_mask, cache, new, cache_update_index, width)
            attention_mask = masks.merge(attention_mask, masks.padding_mask(visible))

        if use_causal_mask:
            causal = masks.causal_mask(positions, key_positions)
            attention_mask = masks.merge(attention_mask, causal)
        if self.sliding_window is not None:
            window = masks.band_mask(
                positions, key_positions, self.sliding_window, self.num_sink_tokens
            )
            attention_mask = masks.merge(attention_mask, window)
        bias = None if attention_bias is None else ops.cast(attention_bias, "float32")
        if self.score_bias is not None:
            own = self.score_bias.bias(positions, key_positions)
            bias = own if bias is None else own + bias
        dropout = functools.partial(self.dropout_layer, training=training)
        output = attention(
            q,
            keys,
            values,
            mask=None if attention_mask is None else ops.expand_dims(attention_mask, -3),
            bias=bias,
            scale=self.attention_scale,
            logit_soft_cap=self.logit_soft_cap,
            sinks=self.sinks,
            dropout=dropout if self.dropout and training else None,
            return_probabilities=return_attention_scores,
        )
        if return_attention_scores:
            output, probabilities = output
        # Two axes, as in `_heads`.
        output = self.output_projection(ops.reshape(output, (-1, self.num_heads * self.head_dim)))
        outputs = [ops.reshape(output, (*ops.shape(query)[:2], output.shape[-1]))]
        if return_attention_scores:
            outputs.append(probabilities)
        if cache is not None:
            outputs.append(cache)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def project_keys_and_values(
        self, inputs: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the keys and values that a cache holds.

        Args:
            inputs: float tensor (B, S, D).
            positions: int tensor (S,) or (B, S). Defaults to `0 .. S - 1`.

        Returns:
            Keys and values, float tensors (B, K, S, H).
        """
        keys = self._heads(inputs, self.key_projection, self.num_key_value_heads, self.key_norm)
        if self.rotary is not None:
            keys = self.rotary(keys, positions=positions)
        values = self._heads(inputs, self.value_projection, self.num_key_value_heads)
        return ops.transpose(keys, (0, 2, 1, 3)), ops.transpose(values, (0, 2, 1, 3))

    def _heads(self, inputs, projection, num_heads, norm=None):
        """Project (B, T, D) to heads (B, T, num_heads, H)."""
        batch_size, length, width = ops.shape(inputs)
        # Flatten to two axes: with unknown sizes, a three-axis matmul takes twenty more operations.
        features = projection(ops.reshape(inputs, (-1, width)))
        heads = ops.reshape(features, (batch_size, length, num_heads, self.head_dim))
        return heads if norm is None else norm(heads)

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape | None = None) -> Shape:
        return query_shape

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in _PLAIN_ARGUMENTS},
            "position": keras.saving.serialize_keras_object(self.position),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


# Arguments that are stored and saved unchanged.
_PLAIN_ARGUMENTS = argument_names(
    MultiHeadAttention.__init__, "position", "kernel_initializer", "bias_initializer"
)
