"""What training needs of TensorFlow alone."""

import tensorflow as tf


def sequential_loop(condition, step, values):
    """`ops.while_loop` whose steps never overlap, so that the tensors of one step are alive."""
    return tf.while_loop(condition, step, values, parallel_iterations=1)


def dense(gradient):
    """A gradient as a tensor: the `tf.IndexedSlices` of an embedding are summed."""
    return tf.convert_to_tensor(gradient)
