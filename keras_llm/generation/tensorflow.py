"""How TensorFlow compiles what `compiled.Compiled` runs."""

import keras
import tensorflow as tf


def of_one_size(model, function, arguments, jit_compile):
    """A function of tensors compiled for the shapes and dtypes of some.

    Args:
        model: the model whose weights it reads.
        function: function of tensors, or nests of them.
        arguments: list of such.
        jit_compile: bool, whether by XLA.
    """
    specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), arguments)
    compiled = tf.function(function, jit_compile=jit_compile, autograph=False)
    return compiled.get_concrete_function(*specs)


def of_any_size(model, function, ranks):
    """A function compiled for int32 tensors of some ranks.

    Args:
        model: the model whose weights it reads.
        function: function of tensors.
        ranks: tuple of ints, the rank of each.
    """
    return tf.function(
        function, input_signature=[tf.TensorSpec((None,) * rank, tf.int32) for rank in ranks]
    )
