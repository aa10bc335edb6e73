"""From documents to batches, deterministic by seed."""

from keras_llm.data.packing import encode_documents, packed_dataset, steps_per_epoch, windows
from keras_llm.data.text import read_texts, shuffle_documents, split_documents

__all__ = [
    "encode_documents",
    "packed_dataset",
    "read_texts",
    "shuffle_documents",
    "split_documents",
    "steps_per_epoch",
    "windows",
]
