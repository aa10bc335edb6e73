"""Build Transformer encoder and decoder blocks."""

import dataclasses
from typing import Any, Self

import keras
from keras import ops

from keras_llm.keras_internals import implicit_mask
from keras_llm.layers import masks
from keras_llm.layers._block import BLOCK_ARGS, TransformerBlock
from keras_llm.layers._parts import Shape
from keras_llm.layers.cache import stack_cache, unstack_cache
from keras_llm.layers.relative import RelativeBias
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class TransformerEncoder(TransformerBlock):
    __doc__ = f"""A Transformer block in which every position sees all others.

    Self-attention, then feed-forward, each in a residual branch with a norm.

    Args:{BLOCK_ARGS}
    Call arguments:
        inputs: float tensor (B, T, D).
        padding_mask: bool tensor (B, T), True = a real token. A mask that Keras attached to
            `inputs`, as `Embedding(mask_zero=True)` does, also applies, and is passed on.
        attention_mask: bool tensor (B, T, T) or (1, T, T), True = may attend.
        positions: int tensor (T,) or (B, T). Defaults to `0 .. T - 1`.
        attention_bias: float tensor broadcastable to (B, N, T, T), added to the scores.
        return_attention_scores: bool. Whether to return the attention probabilities too.

    Returns:
        Float tensor (B, T, D); with `return_attention_scores`, a pair of that and the
        probabilities (B, N, T, T).

    Raises:
        ValueError: if `num_heads` does not divide D and `head_dim` is not given.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need".

    Example:
    >>> import numpy as np
    >>> block = TransformerEncoder(intermediate_dim=32, num_heads=2)
    >>> tuple(block(np.zeros((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def build(self, inputs_shape: Shape) -> None:
        self._build_parts(inputs_shape)

    def call(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        positions: Tensor | None = None,
        attention_bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        implicit = implicit_mask(inputs)
        if padding_mask is None:
            padding_mask = implicit
        elif implicit is not None:
            padding_mask = masks.merge(padding_mask, implicit)
        scores = []

        def self_attention(h):
            output, *rest = _as_tuple(
                self.self_attention(
                    h,
                    attention_mask=attention_mask,
                    positions=positions,
                    padding_mask=padding_mask,
                    attention_bias=attention_bias,
                    return_attention_scores=return_attention_scores,
                    training=training,
                )
            )
            scores.extend(rest)
            return output

        x = _residual(self, inputs, "self_attention", self_attention, training)
        x = _add_feed_forward(self, x, inputs, training)
        return (x, *scores) if scores else x

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return inputs_shape


@keras.saving.register_keras_serializable("keras_llm")
class TransformerDecoder(TransformerBlock):
    __doc__ = f"""A Transformer block in which a position sees itself and earlier positions.

    Causal self-attention, cross-attention if the block is built or first called with an encoder
    sequence, then feed-forward, each in a residual branch with a norm.

    Args:{BLOCK_ARGS}
    Call arguments:
        decoder_sequence: float tensor (B, T, D).
        encoder_sequence: float tensor (B, S, D'), or None for a decoder-only block.
        decoder_padding_mask: bool tensor (B, T), True = a real token. Defaults to the mask that
            Keras attached to `decoder_sequence`, as `Embedding(mask_zero=True)` does; that mask
            is also passed on. With a cache, the mask covers the new tokens, or all S slots; in a
            block with a `sliding_window`, it covers the new tokens, and real tokens come first.
        decoder_attention_mask: bool tensor (B, T, S), True = may attend.
        encoder_padding_mask: bool tensor (B, S), True = a real token. Defaults to the mask that
            Keras attached to `encoder_sequence`.
        encoder_attention_mask: bool tensor (B, T, S), True = may attend.
        self_attention_cache: pair of float tensors (B, K, S, H), or None. With a
            `sliding_window` and `use_causal_mask` it is a ring (see `MultiHeadAttention`).
        self_attention_cache_update_index: int tensor, scalar or (B,): the slot of the
            first new token (see `update_cache`).
        cross_attention_cache: pair of float tensors (B, K, S, H), or None.
        cross_attention_cache_update_index: int tensor, or None to only read the cache.
        use_causal_mask: bool. False leaves masking to `decoder_attention_mask`.
        positions: int tensor (T,) or (B, T). Defaults to `update index + 0 .. T - 1`.
        attention_bias: float tensor broadcastable to (B, N, T, S), added to the
            self-attention's scores.
        return_attention_scores: bool. Whether to return the attention probabilities too.

    A cache may also be one stacked tensor (B, 2, S, K, H), as in keras_nlp, and is then returned
    in that form.

    Returns:
        Float tensor (B, T, D), followed by those that exist of: the updated self-attention
        cache, the updated cross-attention cache, the probabilities (B, N, T, S) of
        self-attention and of cross-attention. A tuple if there is more than one.

    Raises:
        ValueError: if `num_heads` does not divide D and `head_dim` is not given, or an
            encoder sequence is passed to a block that was built without one.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need".

    Example:
    >>> import numpy as np
    >>> block = TransformerDecoder(intermediate_dim=32, num_heads=2)
    >>> tuple(block(np.zeros((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def build(
        self, decoder_sequence_shape: Shape, encoder_sequence_shape: Shape | None = None
    ) -> None:
        self._build_parts(decoder_sequence_shape, encoder_sequence_shape)

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        """Rebuild a block from `get_config`, or from that of a decoder of keras_nlp."""
        config = dict(config)
        names = ("decoder_sequence_shape", "encoder_sequence_shape")
        shapes = [config.pop(name, None) for name in names]
        block = super().from_config(config)
        if shapes[0]:
            block.build(*shapes)
        return block

    def _position(self):
        if isinstance(self.position, RelativeBias):
            return dataclasses.replace(self.position, bidirectional=False)
        return self.position

    def call(
        self,
        decoder_sequence: Tensor,
        encoder_sequence: Tensor | None = None,
        decoder_padding_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        self_attention_cache: tuple[Tensor, Tensor] | Tensor | None = None,
        self_attention_cache_update_index: int | Tensor | None = None,
        cross_attention_cache: tuple[Tensor, Tensor] | Tensor | None = None,
        cross_attention_cache_update_index: int | Tensor | None = None,
        use_causal_mask: bool = True,
        training: bool | None = None,
        positions: Tensor | None = None,
        attention_bias: Tensor | None = None,
        return_attention_scores: bool = False,
    ) -> Tensor | tuple[Any, ...]:
        has_cross_inputs = encoder_sequence is not None or cross_attention_cache is not None
        if has_cross_inputs != (self.cross_attention is not None):
            raise ValueError(
                "`encoder_sequence` must be given if and only if the block was built with one: "
                f"built {'with' if self.cross_attention else 'without'}, "
                f"called {'with' if has_cross_inputs else 'without'}."
            )
        if positions is None:
            positions = ops.arange(ops.shape(decoder_sequence)[1])
            if self_attention_cache_update_index is not None:
                start = ops.convert_to_tensor(self_attention_cache_update_index, "int32")
                positions = positions + (ops.expand_dims(start, -1) if len(start.shape) else start)

        if decoder_padding_mask is None:
            decoder_padding_mask = implicit_mask(decoder_sequence)
        caches, scores = [], []

        def attend(layer, h, cache, **arguments):
            stacked = cache is not None and not isinstance(cache, (tuple, list))
            output, *rest = _as_tuple(
                layer(
                    h,
                    cache=unstack_cache(cache) if stacked else cache,
                    return_attention_scores=return_attention_scores,
                    training=training,
                    **arguments,
                )
            )
            if return_attention_scores:
                scores.append(rest.pop(0))
            if rest:
                caches.append(stack_cache(*rest) if stacked else rest[0])
            return output

        def self_attention(h):
            return attend(
                self.self_attention,
                h,
                self_attention_cache,
                cache_update_index=self_attention_cache_update_index,
                attention_mask=decoder_attention_mask,
                positions=positions,
                use_causal_mask=use_causal_mask,
                padding_mask=decoder_padding_mask,
                attention_bias=attention_bias,
            )

        def cross_attention(h):
            return attend(
                self.cross_attention,
                h,
                cross_attention_cache,
                value=encoder_sequence,
                cache_update_index=cross_attention_cache_update_index,
                attention_mask=encoder_attention_mask,
                padding_mask=encoder_padding_mask,
            )

        x = _residual(self, decoder_sequence, "self_attention", self_attention, training)
        if self.cross_attention is not None:
            x = _residual(self, x, "cross_attention", cross_attention, training)
        x = _add_feed_forward(self, x, decoder_sequence, training)
        outputs = (x, *caches, *scores)
        return outputs if len(outputs) > 1 else x

    def compute_output_shape(
        self, decoder_sequence_shape: Shape, encoder_sequence_shape: Shape | None = None
    ) -> Shape:
        return decoder_sequence_shape


def _as_tuple(output):
    return output if isinstance(output, tuple) else (output,)


def _branch(block, x, name, part, training):
    """Compute the output of `part` on `x`, with norms and dropout, for the residual sum."""
    output = part(getattr(block, f"{name}_norm")(x) if block.normalize_first else x)
    if block.sandwich_norm:
        output = getattr(block, f"{name}_post_norm")(output)
    return block.residual_dropout(output, training=training)


def _residual(block, x, name, part, training):
    """Compute `x + part(norm(x))` or `norm(x + part(x))`."""
    x = x + _branch(block, x, name, part, training)
    return x if block.normalize_first else getattr(block, f"{name}_norm")(x)


def _add_feed_forward(block, x, block_inputs, training):
    def feed_forward(h):
        return block.feed_forward(h, training=training)

    if block.parallel_residual:
        return x + _branch(block, block_inputs, "feed_forward", feed_forward, training)
    return _residual(block, x, "feed_forward", feed_forward, training)
