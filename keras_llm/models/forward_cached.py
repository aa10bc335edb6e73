"""Run decoder steps with an explicit cache, for generation, serving and export."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from keras_llm.errors import InputError
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.decoder import decoder_of
from keras_llm.types import Tensor

_CHUNK = 512  # prompt tokens per prefill step
_shared_step: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar(
    "shared_step", default=None
)


def init_cache(
    model: ConfiguredModel,
    batch_size: int | Tensor = 1,
    length: int | Tensor | None = None,
    rings: bool = True,
) -> dict[str, Tensor]:
    """Return an empty cache.

    Args:
        model: a language model: from `causal_lm` or `seq2seq`, or a composed one, see
            `as_causal_lm` and `as_seq2seq`.
        batch_size: int or int scalar tensor. B.
        length: int or int scalar tensor. S slots per row; defaults to the model's `max_length`.
        rings: bool. Whether sliding-window layers have only as many slots as their window (see
            `layers.MultiHeadAttention`).

    Returns:
        A dict with `k_<i>` and `v_<i>` for each attention layer `i` of the decoder, float tensors
        (B, K, S, H) in its compute dtype, and the states of other layers (B, ...). For an
        encoder-decoder, merge it with the output of `encode_source`.

    Raises:
        InputError: if `model` is no language model, or a layer cannot run token by token.
    """
    decoder = decoder_of(model)
    length = model.config.max_length if length is None else length
    return decoder.empty_cache(batch_size, length, rings)


def prefill(
    model: ConfiguredModel,
    token_ids: Tensor,
    lengths: Tensor,
    cache: dict[str, Tensor],
    first: Tensor | None = None,
    chunk: int = _CHUNK,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read prompts into the cache.

    A prompt longer than `chunk` is processed in chunks up to the end of the longest row, so that
    the attention scores need memory for only `chunk` queries, regardless of the prompt's length.

    Args:
        model: a language model, see `init_cache`.
        token_ids: int tensor (B, T), padded on the right; for an encoder-decoder, the decoder's.
        lengths: int tensor (B,), the number of real tokens of each row, in `1 .. T`.
        cache: from `init_cache`, with at least T slots.
        first: int scalar tensor, less than every length. The cache already holds this many tokens
            of each row, and reading starts after them. None means 0.
        chunk: int > 0. Tokens per step.

    Returns:
        Float32 logits (B, V) at each row's last real token, and the cache.

    Raises:
        InputError: if the cache has fewer than T slots, or `model` is of another kind.
    """
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    lengths = ops.reshape(ops.convert_to_tensor(lengths, "int32"), (-1, 1))
    length = token_ids.shape[1]
    for name, axis in decoder_of(model).slot_axes.items():
        slots = cache[name].shape[axis]
        if None not in (length, slots) and length > slots:
            raise InputError(
                f"prefill: `token_ids` has {length} tokens, `cache` only {slots} slots."
            )
    if first is None and length is not None and length <= chunk:
        hidden, cache = _read(model, token_ids, lengths, cache, 0, length)
        hidden = ops.take_along_axis(hidden, ops.expand_dims(lengths - 1, -1), axis=1)
    else:
        hidden, cache = _read_in_chunks(model, token_ids, lengths, cache, first, chunk)
    return ops.squeeze(logits_of(model, hidden), 1), cache


def _read(model, token_ids, lengths, cache, begin, count):
    """Read the tokens (B, count) at positions `begin ..`; return hidden states and cache."""
    positions = begin + ops.arange(count)
    # One slot per row, although all are equal: TensorFlow writes at a scalar slot only with an
    # XLA compiler operation, and servers do not enable XLA by default.
    index = (
        0
        if isinstance(begin, int) and begin == 0
        else ops.zeros_like(ops.squeeze(lengths, 1)) + begin
    )
    return forward_cached(
        model,
        token_ids,
        positions,
        cache,
        index,
        padding_mask=ops.expand_dims(positions, 0) < lengths,
    )


def _read_in_chunks(model, token_ids, lengths, cache, first, chunk):
    """Return the hidden states (B, 1, D) of each row's last real token, and the cache."""
    length = token_ids.shape[1]
    chunk = min(length, chunk) if length else ops.minimum(ops.shape(token_ids)[1], chunk)
    decoder, slots = decoder_of(model), {}
    cache = dict(cache)
    is_aligned = first is None and length and length % chunk == 0
    if not is_aligned:
        # The last chunk extends past the tokens and the cache, so pad both while reading.
        token_ids = ops.pad(token_ids, ((0, 0), (0, chunk)))
        for name, axis in decoder.slot_axes.items():
            slots[name] = ops.shape(cache[name])[axis]
            widths = [(0, 0)] * len(cache[name].shape)
            widths[axis] = (0, chunk)
            cache[name] = ops.pad(cache[name], widths)

    def step(begin, last, cache):
        ids = ops.take(token_ids, begin + ops.arange(chunk), axis=1)
        hidden, cache = _read(model, ids, lengths, cache, begin, chunk)
        place = lengths - 1 - begin
        last_in_chunk = ops.take_along_axis(
            hidden, ops.expand_dims(ops.clip(place, 0, chunk - 1), -1), axis=1
        )
        ends_here = ops.expand_dims((place >= 0) & (place < chunk), -1)
        return begin + chunk, ops.where(ends_here, last_in_chunk, last), cache

    hidden = (ops.shape(token_ids)[0], 1, decoder.hidden.shape[-1])
    _, last, cache = ops.while_loop(
        lambda begin, *_: begin < ops.max(lengths),
        step,
        (
            ops.convert_to_tensor(0 if first is None else first, "int32"),
            ops.zeros(hidden, dtype=decoder.hidden.dtype),
            cache,
        ),
    )
    for name, count in slots.items():
        index = (slice(None),) * decoder.slot_axes[name]
        cache[name] = cache[name][(*index, slice(count))]
    return last, cache


def decode(
    model: ConfiguredModel, token_ids: Tensor, positions: Tensor, cache: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read one token per row and predict the next.

    Args:
        model: a language model, see `init_cache`.
        token_ids: int tensor (B, 1).
        positions: int tensor (B, 1), the position of each row's token. The token is written into
            that slot of the cache and attends to the slots up to it.
        cache: from `prefill` or `decode`.

    Returns:
        Float32 logits (B, V), and the cache.

    Raises:
        InputError: if `model` is of another kind.
    """
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    positions = ops.convert_to_tensor(positions, "int32")
    index = ops.squeeze(positions, 1)
    hidden, cache = forward_cached(model, token_ids, positions, cache, index)
    return ops.squeeze(logits_of(model, hidden), 1), cache


def forward_cached(
    model: ConfiguredModel,
    token_ids: Tensor,
    positions: Tensor,
    cache: dict[str, Tensor],
    cache_update_index: int | Tensor,
    attention_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one cached step, the basis of `prefill`, `decode` and exported graphs.

    Args:
        model: a language model, see `init_cache`.
        token_ids: int tensor (B, T).
        positions: int tensor (T,) or (B, T).
        cache: dict from `init_cache`; for an encoder-decoder, merged with that of
            `encode_source`.
        cache_update_index: int tensor, scalar or (B,), the slot of the first token; or the int
            0.
        attention_mask: bool tensor (B, T, S), True = may attend. All layers, including
            sliding-window layers, then have at least S slots, and slots after the first S are
            ignored. Defaults to the causal mask of `positions`.
        padding_mask: bool tensor (B, T), True = a real token, real tokens first. Selects the
            tokens that sliding-window layers keep and that change states; None keeps all.

    Returns:
        Float hidden states (B, T, D), ready for the head, and the updated cache.
    """
    step = _shared_step.get() or _forward_cached
    return step(
        model, token_ids, positions, cache, cache_update_index, attention_mask, padding_mask
    )


@contextlib.contextmanager
def sharing_step(share: Callable[..., Any]) -> Iterator[None]:
    """Route `forward_cached` through a function that a backend traces only once.

    Args:
        share: function that takes the function that computes the step, followed by the positional
            arguments of `forward_cached`, and returns the result of the step.
    """
    token = _shared_step.set(functools.partial(share, _forward_cached))
    try:
        yield
    finally:
        _shared_step.reset(token)


def _forward_cached(model, *arguments):
    return decoder_of(model).step(*arguments)


def logits_of(model: ConfiguredModel, hidden: Tensor) -> Tensor:
    """Map hidden states (B, T, D) from `forward_cached` to float32 logits (B, T, V)."""
    return decoder_of(model).logits(hidden)
