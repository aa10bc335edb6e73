"""Serve SavedModels with TensorFlow Serving's protocol in a Python process, for development.

It has the same gRPC and REST APIs and the same flags as TensorFlow Serving, watches the same
folders and runs the same SavedModels in TensorFlow sessions. Use TensorFlow Serving in production.
"""

import importlib
from typing import Any

from keras_llm.errors import InputError, optional_packages, unavailable

_NAMES = {
    "LocalServer": "keras_llm.export.serving.server.server",
    "ServerOptions": "keras_llm.export.serving.server.options",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        try:
            with optional_packages(name):
                return getattr(importlib.import_module(_NAMES[name]), name)
        except InputError as error:
            return unavailable(name, error)
    raise AttributeError(f"module 'keras_llm.export.serving.server' has no attribute {name!r}")
