"""SavedModels for TensorFlow Serving and TFLite files for devices, each proved before it counts."""

import importlib

_NAMES = {
    "Client": "keras_llm.export.client",
    "LocalServer": "keras_llm.export.local_server.server",
    "ServerOptions": "keras_llm.export.local_server.options",
    "LiteRTModel": "keras_llm.export.runner",
    "QuantizationRule": "keras_llm.export.quantization",
    "litert": "keras_llm.export.to_litert",
    "plan_export": "keras_llm.export.planning",
    "litert_lm": "keras_llm.export.to_litert_lm",
    "saved_model": "keras_llm.export.to_saved_model",
    "serving_files": "keras_llm.export.serving",
    "ExportError": "keras_llm.errors",
}
__all__ = sorted(_NAMES)


def __getattr__(name):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'keras_llm.export' has no attribute {name!r}")
