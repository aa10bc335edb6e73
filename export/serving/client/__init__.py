"""Asks a TensorFlow Serving server, or the local one, over gRPC or REST; without TensorFlow."""

from keras_llm.export.serving.client.client import Client

__all__ = ["Client"]
