"""Run exported files with LiteRT, without TensorFlow and Keras."""
