"""Create the sublayers and initializers that several layers share."""

import keras


def clone(initializer):
    """Copy an initializer, so that no two weights draw from the same random seed."""
    return initializer.clone() if hasattr(initializer, "clone") else initializer


def dense(owner, units, name):
    """Create a dense layer with the biases, initializers and dtype policy of its owner."""
    return keras.layers.Dense(
        units,
        use_bias=owner.use_bias,
        kernel_initializer=clone(owner.kernel_initializer),
        bias_initializer=clone(owner.bias_initializer),
        dtype=owner.dtype_policy,
        name=name,
    )
