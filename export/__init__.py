"""Export tasks as SavedModels for TensorFlow Serving and TFLite files for devices."""

import importlib

from keras_llm.export.litert import litert, litert_lm
from keras_llm.export.saved_model import saved_model

_LAZY = {
    "Client": "keras_llm.export.serving.client",
    "LocalServer": "keras_llm.export.serving.server.server",
    "ServerOptions": "keras_llm.export.serving.server.options",
    "LiteRTModel": "keras_llm.export.litert.runtime.model",
    "QuantizationRule": "keras_llm.export.litert.quantization.rules",
    "plan_export": "keras_llm.export.planning",
    "serving_files": "keras_llm.export.serving.manifests",
    "ExportError": "keras_llm.errors",
}
__all__ = ["litert", "litert_lm", "saved_model", *sorted(_LAZY)]


def __getattr__(name):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'keras_llm.export' has no attribute {name!r}")
