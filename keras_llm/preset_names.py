"""List the names of presets, for commands that refuse other names before they import Keras."""

import difflib

from keras_llm.errors import InputError

NAMES = [
    "bert-base",
    "bert-large",
    "bert-tiny",
    "distilbert-base",
    "distilbert-tiny",
    "encoder-2m",
    "encoder-tiny",
    "gemma2-27b",
    "gemma2-2b",
    "gemma2-9b",
    "gemma2-tiny",
    "gemma3-12b",
    "gemma3-1b",
    "gemma3-27b",
    "gemma3-4b",
    "gemma3-tiny",
    "gpt-3m",
    "gpt-tiny",
    "gpt2",
    "gpt2-large",
    "gpt2-medium",
    "gpt2-tiny",
    "gpt2-xl",
    "gpt3-13b",
    "gpt3-175b",
    "gpt3-2.7b",
    "gpt3-6.7b",
    "gpt3-large",
    "gpt3-medium",
    "gpt3-small",
    "gpt3-tiny",
    "gpt3-xl",
    "lamda-137b",
    "lamda-2b",
    "lamda-8b",
    "lamda-tiny",
    "llama-12m",
    "llama-3m",
    "llama-tiny",
    "llama3-70b",
    "llama3-8b",
    "llama3-tiny",
    "llama3.2-1b",
    "llama3.2-3b",
    "minilm-l12",
    "minilm-l6",
    "minilm-tiny",
    "mistral-7b",
    "mistral-tiny",
    "mixtral-8x7b",
    "mixtral-tiny",
    "phi3-mini",
    "phi3-tiny",
    "phi4",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-7b",
    "qwen2.5-tiny",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-tiny",
    "roberta-base",
    "roberta-large",
    "roberta-tiny",
    "seq2seq-2m",
    "seq2seq-tiny",
    "smollm2-1.7b",
    "smollm2-135m",
    "smollm2-360m",
    "smollm2-tiny",
    "smollm3-3b",
    "smollm3-tiny",
    "t5-tiny",
    "t5-v1.1-base",
    "t5-v1.1-large",
    "t5-v1.1-small",
    "t5-v1.1-xl",
    "t5-v1.1-xxl",
    "transformer-base",
    "transformer-big",
    "transformer-tiny",
]
"""The names of all presets, sorted; the configs are in `models/presets.py`."""


def check_preset(name: str) -> None:
    """Raise InputError if a name is not the name of a preset."""
    if name not in NAMES:
        raise InputError(f"preset: unknown name {name!r}; {similar_presets(name)}.")


def similar_presets(name: str) -> str:
    """Return a hint for an unknown preset name: similar presets, or all of them."""
    similar = difflib.get_close_matches(name, NAMES, n=5)
    return f"{'similar' if similar else 'known'} presets: {', '.join(similar or NAMES)}"
