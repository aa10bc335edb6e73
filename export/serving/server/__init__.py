"""A server with TensorFlow Serving's protocol in one Python process, for a laptop or a test.

TensorFlow Serving is the one for production: this one speaks the same gRPC and REST, has the same
flags, watches the same folders and runs the same SavedModels in TensorFlow's own sessions.
"""

import importlib

_NAMES = {
    "LocalServer": "keras_llm.export.serving.server.server",
    "ServerOptions": "keras_llm.export.serving.server.options",
}
__all__ = sorted(_NAMES)


def __getattr__(name):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'keras_llm.export.serving.server' has no attribute {name!r}")
