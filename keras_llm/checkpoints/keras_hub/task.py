"""Convert the causal language models of KerasHub to the parts of a task."""

from typing import Any

from keras_llm.checkpoints.keras_hub.model import from_keras_hub
from keras_llm.checkpoints.keras_hub.tokenizer import read_tokenizer
from keras_llm.errors import InputError
from keras_llm.models import CausalLM
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON


def read_task(
    causal_lm: Any, max_length: int | None, dtype: str | None, tokenizer: Tokenizer | None
) -> tuple[CausalLM, Tokenizer, JSON]:
    """Return the model, the tokenizer and the metadata of a task.

    The arguments are those of `TextGeneration.from_keras_hub`.
    """
    metadata: JSON = {"source": f"KerasHub, {type(causal_lm).__name__}"}
    if tokenizer is None:
        preprocessor = getattr(causal_lm, "preprocessor", None)
        original = getattr(preprocessor, "tokenizer", None)
        if original is None:
            raise InputError(
                "`tokenizer` must be given, because `causal_lm` has no preprocessor with a "
                "tokenizer."
            )
        tokenizer, ends = read_tokenizer(original)
        if ends != [tokenizer.eos_id]:
            metadata["end_token_ids"] = ends
    return from_keras_hub(causal_lm, max_length, dtype), tokenizer, metadata
