"""Run exported files with LiteRT, without TensorFlow or Keras."""
