"""Rematerialize Transformer blocks in the backward pass (gradient checkpointing)."""

import functools
from typing import Any

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.keras_internals import flatten_layers
from keras_llm.layers import TransformerDecoder, TransformerEncoder


def rematerialize(model: keras.Model) -> int:
    """Recompute each Transformer block in the backward pass (gradient checkpointing).

    Between the passes a block stores only its input, (B, T, D), and no intermediate activations; in
    exchange, the forward pass of each block runs twice per training step. Loss, gradients and
    dropout do not change. Call it before `fit`; `compile` may come before or after.

    Args:
        model: a model of this library with Transformer blocks, or a trainer around one. It is
            modified in place: everything that shares the model is affected. The config does not
            change: a model that is saved and loaded is not rematerialized.

    Returns:
        The number of blocks, an int.

    Raises:
        InputError: if the model has no Transformer blocks, or they are already rematerialized.

    Reference:
        Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost".

    Example:
    >>> from keras_llm import models
    >>> rematerialize(models.causal_lm(models.preset("llama-tiny")))
    2
    """
    kinds = (TransformerEncoder, TransformerDecoder)
    blocks: list[Any] = [layer for layer in flatten_layers(model) if isinstance(layer, kinds)]
    if not blocks:
        raise InputError(f"`model` {model.name!r} has no Transformer blocks.")
    if any(hasattr(block.call, "__wrapped__") for block in blocks):
        raise InputError(f"`model` {model.name!r} is already rematerialized.")
    for block in blocks:
        block.call = _recomputed(block, block.call)
    return len(blocks)


def _recomputed(block, call):
    """Wrap `call` so that in training it runs again in the backward pass."""

    @functools.wraps(call)
    def wrapped(*args, **kwargs):
        if not kwargs.get("training"):
            return call(*args, **kwargs)
        leaves = keras.tree.flatten((args, kwargs))
        floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
        # Copy the dropout seeds, so that the second run draws the same masks as the first.
        seeds = [v for v in block.variables if v.path.endswith("seed_generator_state")]
        before = [ops.copy(seed) for seed in seeds]
        # TensorFlow tracks the variables that a function reads; JAX needs them passed as values.
        captured = block.variables if keras.backend.backend() == "jax" else seeds
        state = [(v, ops.copy(v)) for v in captured]

        @keras.remat
        def run(*values):
            filled = list(leaves)
            for i, value in zip(floats, values, strict=True):
                filled[i] = value
            args_, kwargs_ = keras.tree.pack_sequence_as((args, kwargs), filled)
            with keras.StatelessScope(state, collect_losses=True) as scope:
                output = call(*args_, **kwargs_)
            # `keras.remat` returns only floats; seed states advance by small counts, which are
            # exact in float32.
            draws = [scope.get_current_value(s) - b for s, b in zip(seeds, before, strict=True)]
            return output, scope.losses, [ops.cast(n, "float32") for n in draws]

        output, losses, draws = run(*(leaves[i] for i in floats))
        for seed, old, count in zip(seeds, before, draws, strict=True):
            seed.assign(old + ops.cast(ops.stop_gradient(count), seed.dtype))
        if losses:
            block.add_loss(losses)
        return output

    return wrapped


def _is_float(leaf):
    return ops.is_tensor(leaf) and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(leaf.dtype)
    )
