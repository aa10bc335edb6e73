"""Blocks that are computed again in the backward pass instead of being remembered."""

import functools

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers import TransformerDecoder, TransformerEncoder


def rematerialize(model):
    """Let each Transformer block be computed again in the backward pass (gradient checkpointing).

    Between the passes a block holds its input, (B, T, D), and nothing of what it computes inside;
    for that each block runs twice in a training step. Loss, gradients and dropout are those
    without it. Call it before `fit`; `compile` may come before or after.

    Args:
        model: a model of this library with Transformer blocks, or a trainer around one. It is
            changed: what else holds the same model trains so too. Its config is not: a model that
            is saved and loaded remembers everything again.

    Returns:
        How many blocks there are, an int.

    Raises:
        InputError: if the model has no Transformer blocks, or they are rematerialised already.

    Reference:
        Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost".

    Example:
    >>> from keras_llm import models
    >>> rematerialize(models.causal_lm(models.preset("llama-tiny")))
    2
    """
    layers = model._flatten_layers()
    blocks = [b for b in layers if isinstance(b, (TransformerEncoder, TransformerDecoder))]
    if not blocks:
        raise InputError(f"`model` {model.name!r} has no Transformer blocks.")
    if any(hasattr(block.call, "__wrapped__") for block in blocks):
        raise InputError(f"`model` {model.name!r} is rematerialised already.")
    for block in blocks:
        block.call = _recomputed(block, block.call)
    return len(blocks)


def _recomputed(block, call):
    """`call`, which in training is run again in the backward pass."""

    @functools.wraps(call)
    def wrapped(*args, **kwargs):
        if not kwargs.get("training"):
            return call(*args, **kwargs)
        leaves = keras.tree.flatten((args, kwargs))
        floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
        # Where the state of dropout stood: the second run draws what the first drew.
        seeds = [v for v in block.variables if v.path.endswith("seed_generator_state")]
        before = [ops.copy(seed) for seed in seeds]
        # TensorFlow finds the variables that a function reads; JAX sees only what is passed.
        known = block.variables if keras.backend.backend() == "jax" else seeds
        state = [(v, ops.copy(v)) for v in known]

        @keras.remat
        def run(*values):
            filled = list(leaves)
            for i, value in zip(floats, values, strict=True):
                filled[i] = value
            args_, kwargs_ = keras.tree.pack_sequence_as((args, kwargs), filled)
            with keras.StatelessScope(state, collect_losses=True) as scope:
                output = call(*args_, **kwargs_)
            # Only floats come out of `keras.remat`; the states go on by small counts.
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
