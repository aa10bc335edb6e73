"""Import and export weights: Hugging Face, GGUF, GloVe and KerasHub."""

from keras_llm.checkpoints.gguf.model import from_gguf
from keras_llm.checkpoints.glove import read_glove, write_glove
from keras_llm.checkpoints.hugging_face.model import load_model
from keras_llm.checkpoints.hugging_face.reading import from_hugging_face, to_hugging_face
from keras_llm.checkpoints.keras_hub.model import from_keras_hub, to_keras_hub
from keras_llm.checkpoints.named import load_tensors

__all__ = [
    "from_gguf",
    "from_hugging_face",
    "from_keras_hub",
    "load_model",
    "load_tensors",
    "read_glove",
    "to_hugging_face",
    "to_keras_hub",
    "write_glove",
]
