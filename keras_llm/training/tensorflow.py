"""What training needs of TensorFlow alone."""

import tensorflow as tf

from keras_llm.errors import InputError


def sequential_loop(condition, step, values):
    """`ops.while_loop` whose steps never overlap, so that the tensors of one step are alive."""
    return tf.while_loop(condition, step, values, parallel_iterations=1)


def dense(gradient):
    """A gradient as a tensor: the `tf.IndexedSlices` of an embedding are summed."""
    return tf.convert_to_tensor(gradient)


def check_one_replica(name):
    """Raise InputError in the scope of a strategy that splits a batch over several replicas."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise InputError(
            f"training.{name} is for one replica, and this strategy has {replicas}: each would "
            "weigh, clip or count its part of the batch by itself."
        )
