"""Define the graphs of exported decoders: token ids to logits, with an explicit key-value cache.

Inputs and outputs have the names and shapes that LiteRT-LM expects: `tokens` int32 (1, T),
`input_pos` int32 (T,), `mask` float32 (1, 1, T, S) with 0 = may attend and a large negative number
= may not, `kv_cache_k_<i>` and `kv_cache_v_<i>` float32 (1, K, S, H), and `logits` float32
(1, 1, V) from `decode`. New keys and values are written starting at slot `input_pos[0]`. Other
entries of a cache, such as the states of recurrent layers, are also inputs and outputs
`kv_cache_k_<name>`; a step at position 0 ignores what they hold.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_llm import models
from keras_llm.export.litert.unrolling import unrolled
from keras_llm.keras_internals import structure_of
from keras_llm.models.decoder import decoder_of
from keras_llm.types import JSON, Tensor

_VALUE = "kv_cache_v_unused"  # LiteRT-LM requires a tensor of this kind


def signatures(
    model: models.ConfiguredModel, manifest: JSON
) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
    """Return the signatures of a decoder: `prefill_<T>` and `decode`, after `encode` if it has one.

    `decode_<N>` is a faster `decode` for positions below N: its `mask` is (1, 1, 1, N), and it does
    not attend to slots N and later.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        manifest: dict with `cache_slots` (S), `prefill_lengths` (each T), `decode_lengths` (each
            N) and, for a `seq2seq` model, `encoder_length` (E).

    Returns:
        A dict that maps a name to a pair: a function that takes tensors by name, and a dict of
        their specs.
    """
    slots, length = manifest["cache_slots"], manifest.get("encoder_length")
    steps = {} if length is None else {"encode": encoder(model, length)}
    for count in manifest["prefill_lengths"]:
        steps[f"prefill_{count}"] = decoder_step(model, slots, count, False, None, length)
    for attended in manifest["decode_lengths"]:
        steps[f"decode_{attended}"] = decoder_step(model, slots, 1, True, attended, length)
    steps["decode"] = decoder_step(model, slots, 1, True, None, length)
    return steps


def encoder(
    model: models.Seq2Seq, length: int
) -> tuple[Callable[..., dict[str, Tensor]], dict[str, tf.TensorSpec]]:
    """Return `encode`: a function and the specs of its inputs.

    The function takes `encoder_tokens` int32 (1, E), padded with `pad_id`, and returns the
    additional inputs of the decoder steps: `cross_k_<i>` and `cross_v_<i>` float32 (1, K, E, H),
    and `encoder_mask` float32 (1, E), 1 at real tokens.
    """

    def encode(encoder_tokens):
        with unrolled(model):
            entries = models.encode_source(model, encoder_tokens)
        return {_source_name(name): tf.cast(entry, tf.float32) for name, entry in entries.items()}

    return encode, {"encoder_tokens": tf.TensorSpec((1, length), tf.int32, name="encoder_tokens")}


def decoder_step(
    model: models.ConfiguredModel,
    slots: int,
    length: int,
    with_logits: bool,
    attended: int | None,
    encoder_length: int | None,
) -> tuple[Callable[..., dict[str, Tensor]], dict[str, tf.TensorSpec]]:
    """Return a decoder step: a function and the specs of its inputs.

    Args:
        model: as in `signatures`.
        slots: int. S.
        length: int. T.
        with_logits: bool. Whether to return `logits` (1, T, V).
        attended: int. Number of slots to attend to, or None for all.
        encoder_length: int. E, or None for a model without an encoder.
    """
    attended = slots if attended is None else attended
    decoder = decoder_of(model)
    entries = decoder.entry_specs(slots, rings=False)
    source = {} if encoder_length is None else source_specs(model, encoder_length)
    needs_value = not any(name.startswith("v_") for name in entries)

    def step(tokens, input_pos, mask, **cache):
        unused = cache.pop(_VALUE, None)
        own = {_tensor_name(name): cache.pop(_tensor_name(name)) for name in entries}
        cache |= {name: own[_tensor_name(name)] for name in entries}
        if states := entries.keys() - decoder.full_axes.keys():
            empty = decoder.empty_cache(1, slots, rings=False)
            for name in states:
                cache[name] = tf.where(input_pos[0] == 0, empty[name], cache[name])
        for name, spec in source.items():
            value = cache.pop(_source_name(name))
            cache[name] = value > 0.5 if spec.dtype == "bool" else tf.cast(value, spec.dtype)
        attention_mask = tf.squeeze(mask, 1) > -1.0
        padding_mask = None
        if decoder.has_states and length > 1:  # padding attends to nothing
            padding_mask = tf.reduce_any(attention_mask, axis=-1)
        hidden, updated = models.forward_cached(
            model, tokens, input_pos, cache, input_pos[0], attention_mask, padding_mask
        )
        outputs = {_tensor_name(name): updated[name] for name in entries}
        if needs_value:
            outputs[_VALUE] = tf.minimum(unused, tf.cast(input_pos[:1], tf.float32))
        if with_logits:
            outputs["logits"] = models.logits_of(model, hidden)
        return outputs

    specs: dict[str, tuple[tuple[Any, ...], Any]] = {
        "tokens": ((1, length), tf.int32),
        "input_pos": ((length,), tf.int32),
        "mask": ((1, 1, length, attended), tf.float32),
    }
    for name, entry in entries.items():
        is_text = entry.dtype == "int32"
        specs[_tensor_name(name)] = (entry.shape, tf.int32 if is_text else tf.float32)
    if needs_value:
        specs[_VALUE] = ((1,), tf.float32)
    for name, spec in source.items():
        specs[_source_name(name)] = (spec.shape, tf.float32)
    return step, {n: tf.TensorSpec(shape, dtype, name=n) for n, (shape, dtype) in specs.items()}


def _tensor_name(entry):
    """Return the name of a cache entry in the graph: LiteRT-LM keeps what begins like keys."""
    return f"kv_cache_{entry}" if entry[:2] in ("k_", "v_") else f"kv_cache_k_{entry}"


def source_specs(model: models.ConfiguredModel, length: int) -> dict[str, keras.KerasTensor]:
    """Return symbolic tensors, what `models.encode_source` returns for E token ids of one row."""
    return structure_of(lambda: models.encode_source(model, tf.zeros((1, length), tf.int32)))


def _source_name(entry):
    """Return the name of an entry of the source in the graph."""
    return "encoder_mask" if entry == "encoder_padding_mask" else entry
