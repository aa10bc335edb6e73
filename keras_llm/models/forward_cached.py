"""Run decoder steps with an explicit cache, for generation, serving and export."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers import causal_mask, empty_cache
from keras_llm.models import forward_pass
from keras_llm.models.base import check_model
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.config import Seq2SeqConfig
from keras_llm.models.seq2seq import Seq2Seq
from keras_llm.types import Tensor

_CHUNK = 512  # prompt tokens per prefill step
_DECODERS = ((CausalLM, Seq2Seq), "causal_lm or seq2seq")
_shared_step: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar(
    "shared_step", default=None
)


def init_cache(
    model: CausalLM | Seq2Seq, batch_size: int | Tensor = 1, length: int | Tensor | None = None
) -> dict[str, Tensor]:
    """Return an empty key-value cache.

    Args:
        model: a model from `causal_lm` or `seq2seq`.
        batch_size: int or int scalar tensor. B.
        length: int or int scalar tensor. S slots per row; defaults to the model's `max_length`.
            Sliding-window layers need no more slots than their window (see
            `layers.MultiHeadAttention`).

    Returns:
        A dict with `k_<i>` and `v_<i>` for each decoder layer `i`, float tensors (B, K, S, H) in
        the model's compute dtype. For a `seq2seq` model, merge it with the output of
        `encode_source`.

    Raises:
        InputError: if `model` comes from neither `causal_lm` nor `seq2seq`.
    """
    check_model("init_cache", model, *_DECODERS)
    config: Any = model.config  # whose optional sizes are filled in
    count, prefix = _decoder(config)
    length = config.max_length if length is None else length
    cache = {}
    for i in range(count):
        slots = length
        if forward_pass.has_ring(config, i):
            ring = config.window(i) + config.num_sink_tokens
            slots = min(length, ring) if isinstance(length, int) else ops.minimum(length, ring)
        cache[f"k_{i}"], cache[f"v_{i}"] = empty_cache(
            batch_size,
            slots,
            config.num_key_value_heads,
            config.head_dim,
            dtype=model.get_layer(f"{prefix}block_{i}").compute_dtype,
        )
    return cache


def prefill(
    model: CausalLM | Seq2Seq,
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
        model: a model from `causal_lm` or `seq2seq`.
        token_ids: int tensor (B, T), padded on the right; decoder token ids for a `seq2seq` model.
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
    check_model("prefill", model, *_DECODERS)
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    lengths = ops.reshape(ops.convert_to_tensor(lengths, "int32"), (-1, 1))
    length = token_ids.shape[1]
    for name in _full_entries(model, cache):
        slots = cache[name].shape[2]
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
    full, slots = _full_entries(model, cache), {}
    cache = dict(cache)
    is_aligned = first is None and length and length % chunk == 0
    if not is_aligned:
        # The last chunk extends past the tokens and the cache, so pad both while reading.
        token_ids = ops.pad(token_ids, ((0, 0), (0, chunk)))
        slots = {name: ops.shape(cache[name])[2] for name in full}
        for name in full:
            cache[name] = ops.pad(cache[name], ((0, 0), (0, 0), (0, chunk), (0, 0)))

    def step(begin, last, cache):
        ids = ops.take(token_ids, begin + ops.arange(chunk), axis=1)
        hidden, cache = _read(model, ids, lengths, cache, begin, chunk)
        place = lengths - 1 - begin
        last_in_chunk = ops.take_along_axis(
            hidden, ops.expand_dims(ops.clip(place, 0, chunk - 1), -1), axis=1
        )
        ends_here = ops.expand_dims((place >= 0) & (place < chunk), -1)
        return begin + chunk, ops.where(ends_here, last_in_chunk, last), cache

    hidden_dim = (ops.shape(token_ids)[0], 1, model.config.hidden_dim)
    _, last, cache = ops.while_loop(
        lambda begin, *_: begin < ops.max(lengths),
        step,
        (
            ops.convert_to_tensor(0 if first is None else first, "int32"),
            ops.zeros(hidden_dim, dtype=model.get_layer("token_embedding").compute_dtype),
            cache,
        ),
    )
    for name, count in slots.items():
        cache[name] = cache[name][:, :, :count]
    return last, cache


def _full_entries(model, cache):
    """Return the names of the cache entries with a slot for every position."""
    count, _ = _decoder(model.config)
    layers = [i for i in range(count) if not forward_pass.has_ring(model.config, i)]
    return [f"{kind}_{i}" for i in layers for kind in "kv" if f"{kind}_{i}" in cache]


def decode(
    model: CausalLM | Seq2Seq, token_ids: Tensor, positions: Tensor, cache: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read one token per row and predict the next.

    Args:
        model: a model from `causal_lm` or `seq2seq`.
        token_ids: int tensor (B, 1).
        positions: int tensor (B, 1), the position of each row's token. The token is written into
            that slot of the cache and attends to the slots up to it.
        cache: from `prefill` or `decode`.

    Returns:
        Float32 logits (B, V), and the cache.

    Raises:
        InputError: if `model` is of another kind.
    """
    check_model("decode", model, *_DECODERS)
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    positions = ops.convert_to_tensor(positions, "int32")
    index = ops.squeeze(positions, 1)
    hidden, cache = forward_cached(model, token_ids, positions, cache, index)
    return ops.squeeze(logits_of(model, hidden), 1), cache


def forward_cached(
    model: CausalLM | Seq2Seq,
    token_ids: Tensor,
    positions: Tensor,
    cache: dict[str, Tensor],
    cache_update_index: int | Tensor,
    attention_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one cached step, the basis of `prefill`, `decode` and exported graphs.

    Args:
        model: a model from `causal_lm` or `seq2seq`.
        token_ids: int tensor (B, T).
        positions: int tensor (T,) or (B, T).
        cache: dict from `init_cache`; for a `seq2seq` model, merged with that of
            `encode_source`.
        cache_update_index: int tensor, scalar or (B,), the slot of the first token; or the int
            0.
        attention_mask: bool tensor (B, T, S), True = may attend. All layers, including
            sliding-window layers, then have at least S slots, and slots after the first S are
            ignored. Defaults to the causal mask of `positions`.
        padding_mask: bool tensor (B, T), True = a real token, real tokens first. Selects the
            tokens that sliding-window layers keep; None keeps all.

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


def _forward_cached(
    model, token_ids, positions, cache, cache_update_index, attention_mask, padding_mask
):
    config, layer = model.config, model.get_layer
    count, prefix = _decoder(config)
    x = forward_pass.embed(layer, config, token_ids, positions)
    rings = [attention_mask is None and forward_pass.has_ring(config, i) for i in range(count)]
    bias = None
    if not all(rings):
        slots = ops.arange(ops.shape(cache[f"k_{rings.index(False)}"])[2])
        if attention_mask is None:
            attention_mask = causal_mask(positions, slots)
        else:
            slots = slots[: attention_mask.shape[-1]]
        bias = forward_pass.shared_bias(layer, config, prefix, positions, slots)
    updated = dict(cache)
    for i, ring in enumerate(rings):
        arguments = {
            "self_attention_cache": (cache[f"k_{i}"], cache[f"v_{i}"]),
            "self_attention_cache_update_index": cache_update_index,
            "use_causal_mask": ring,
            "positions": positions,
        }
        if ring:
            arguments["decoder_padding_mask"] = padding_mask
        else:
            arguments["decoder_attention_mask"] = attention_mask
            arguments["attention_bias"] = bias
        if f"cross_k_{i}" in cache:
            arguments["cross_attention_cache"] = (cache[f"cross_k_{i}"], cache[f"cross_v_{i}"])
            arguments["encoder_padding_mask"] = cache["encoder_padding_mask"]
        x, (updated[f"k_{i}"], updated[f"v_{i}"]), *_ = layer(f"{prefix}block_{i}")(x, **arguments)
    return (x if config.norm_position == "post" else layer(f"{prefix}final_norm")(x)), updated


def logits_of(model: CausalLM | Seq2Seq, hidden: Tensor) -> Tensor:
    """Map hidden states (B, T, D) from `forward_cached` to float32 logits (B, T, V)."""
    return forward_pass.logits(model.get_layer, model.config, hidden)


def _decoder(config):
    """Return a model's number of decoder blocks and the prefix of their names."""
    if isinstance(config, Seq2SeqConfig):
        return config.num_decoder_layers, "decoder_"
    return config.num_layers, ""
