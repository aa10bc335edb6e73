"""Unroll the loops of recurrent layers, which runtimes on device do not have."""

import contextlib
from collections.abc import Iterator

import keras

from keras_llm.keras_internals import flatten_layers


@contextlib.contextmanager
def unrolled(model: keras.Model) -> Iterator[None]:
    """Unroll the recurrent layers of a composed model while it is traced."""
    layers = [layer for layer in flatten_layers(model) if isinstance(layer, keras.layers.RNN)]
    before = [layer.unroll for layer in layers]
    try:
        for layer in layers:
            layer.unroll = True
        yield
    finally:
        for layer, unroll in zip(layers, before, strict=True):
            layer.unroll = unroll
