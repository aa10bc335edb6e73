"""Look up the special tokens of fill-in-the-middle."""

from keras_llm.errors import InputError
from keras_llm.tokenizers.base import Tokenizer

INFILLING_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_SPELLINGS = (
    INFILLING_TOKENS,  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
)


def infilling_tokens(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Return the ids of the prefix, suffix and middle tokens: a tuple of three ints.

    Args:
        tokenizer: a `Tokenizer`, e.g. trained with `special_tokens=INFILLING_TOKENS`.

    Raises:
        InputError: if the tokenizer has no such tokens.
    """
    for tokens in _SPELLINGS:
        if set(tokens) <= set(tokenizer.special_tokens):
            prefix, suffix, middle = (tokenizer.special_tokens[token] for token in tokens)
            return prefix, suffix, middle
    raise InputError(
        f"the tokenizer has no fill-in-the-middle tokens such as {', '.join(INFILLING_TOKENS)}."
    )
