"""Weights from elsewhere, and to elsewhere: Hugging Face folders, GGUF files, GloVe vectors."""

__all__ = []
