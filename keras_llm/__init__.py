"""Build, train and export language models with Keras.

Submodules are imported lazily, so `import keras_llm` takes milliseconds.
"""

import importlib

__version__ = "0.2.0"

_SUBMODULES = {
    "checkpoints",
    "data",
    "export",
    "generation",
    "layers",
    "models",
    "recipes",
    "tasks",
    "tokenizers",
    "training",
}
_NAMES = {
    "ExportError": "keras_llm.errors",
    "InputError": "keras_llm.errors",
    "MaskedLanguageModel": "keras_llm.tasks",
    "QuestionAnswering": "keras_llm.tasks",
    "RankedChat": "keras_llm.tasks",
    "TextClassification": "keras_llm.tasks",
    "TextEmbedding": "keras_llm.tasks",
    "TextGeneration": "keras_llm.tasks",
    "TextRegression": "keras_llm.tasks",
    "TokenClassification": "keras_llm.tasks",
    "Translation": "keras_llm.tasks",
    "WordVectors": "keras_llm.tasks",
    "load": "keras_llm.tasks",
}

__all__ = sorted([*_SUBMODULES, *_NAMES])


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"keras_llm.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'keras_llm' has no attribute {name!r}")


def __dir__():
    return __all__
