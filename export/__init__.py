"""Export tasks to SavedModel for TensorFlow Serving and to TFLite for on-device inference."""

import importlib
from typing import Any

# Import these functions first: `export.litert` is the function, not the package of that name.
from keras_llm.errors import InputError, optional_packages, unavailable
from keras_llm.export.litert import litert, litert_lm  # noqa: F401
from keras_llm.export.saved_model import saved_model  # noqa: F401

_NAMES = {
    "Client": "keras_llm.export.serving.client",
    "LocalServer": "keras_llm.export.serving.server.server",
    "ServerOptions": "keras_llm.export.serving.server.options",
    "LiteRTModel": "keras_llm.export.litert.runtime.model",
    "QuantizationRule": "keras_llm.export.litert.quantization.rules",
    "plan_export": "keras_llm.export.planning",
    "litert": "keras_llm.export.litert",
    "litert_lm": "keras_llm.export.litert",
    "saved_model": "keras_llm.export.saved_model",
    "serving_files": "keras_llm.export.serving.manifests",
    "ExportError": "keras_llm.errors",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        try:
            with optional_packages(f"export.{name}"):
                return getattr(importlib.import_module(_NAMES[name]), name)
        except InputError as error:
            return unavailable(name, error)
    raise AttributeError(f"module 'keras_llm.export' has no attribute {name!r}")
