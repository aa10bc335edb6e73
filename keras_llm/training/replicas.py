"""Where a batch is split over several replicas."""

import keras


def check_one_replica(name):
    """Raise InputError under a `tf.distribute` strategy with several replicas, naming `name`."""
    if keras.backend.backend() == "tensorflow":
        from keras_llm.training import tensorflow

        tensorflow.check_one_replica(name)
