"""Call TensorFlow Serving or the local server over gRPC or REST, without TensorFlow."""

from keras_llm.export.serving.client.client import Client

__all__ = ["Client"]
