"""Small parts that several layers make in the same way."""

import keras


def clone(initializer):
    """A fresh copy, so that two weights never draw from one random seed."""
    return initializer.clone() if hasattr(initializer, "clone") else initializer


def dense(owner, units, name):
    """A dense layer with the biases, initializers and dtype policy of the layer that owns it."""
    return keras.layers.Dense(
        units,
        use_bias=owner.use_bias,
        kernel_initializer=clone(owner.kernel_initializer),
        bias_initializer=clone(owner.bias_initializer),
        dtype=owner.dtype_policy,
        name=name,
    )
