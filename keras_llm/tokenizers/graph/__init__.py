"""Tokenization with TensorFlow operations, for `tf.data` and SavedModels."""
