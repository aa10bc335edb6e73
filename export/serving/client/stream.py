"""Stream text from a stateless server: call `prefill` once and `decode` for each token."""

import numbers
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_llm.errors import InputError
from keras_llm.export.sampling import Sampling, choose


def stream_tokens(
    predict: Callable[[str, dict[str, Any]], dict[str, np.ndarray]],
    prompt: str,
    max_new_tokens: int,
    settings: dict[str, Any],
) -> Iterator[str]:
    """Stream the continuation of a prompt.

    Args:
        predict: function that takes the name of a signature and its inputs, and returns its
            outputs.
        prompt: str, not empty.
        max_new_tokens: int > 0.
        settings: dict of `temperature`, `top_k`, `top_p` and `seed`.

    Yields:
        Non-empty pieces of text that end at character boundaries.

    Raises:
        InputError: before the first request, if a setting is out of range.
    """
    is_int = isinstance(max_new_tokens, numbers.Integral) and not isinstance(max_new_tokens, bool)
    if not is_int or max_new_tokens < 1:
        raise InputError(f"`max_new_tokens` must be an int > 0, got {max_new_tokens!r}.")
    sampling = Sampling(**settings).validate()
    return _pieces(predict, prompt, max_new_tokens, sampling)


def _pieces(predict, prompt, max_new_tokens, sampling):
    tokenized = predict("tokenize", {"text": [prompt]})
    length = int(tokenized["lengths"][0])
    outputs = predict(
        "prefill",
        {
            "token_ids": tokenized["token_ids"],
            "lengths": [length],
            "cache_length": length + max_new_tokens - 1,  # the last token is not an input
        },
    )
    # The last token of the prompt tells whether the text continues with a space.
    new_ids = [int(tokenized["token_ids"][0][length - 1])]
    text = shown = _text(predict, new_ids)
    for step in range(max_new_tokens):
        token = choose(outputs.pop("logits")[0], sampling, step)
        if predict("is_end", {"token_ids": [[token]]})["is_end"][0, 0]:
            break
        new_ids.append(token)
        text = _text(predict, new_ids)
        # An incomplete character is decoded as U+FFFD until its remaining bytes are generated.
        if len(text) > len(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
        if step + 1 < max_new_tokens:
            inputs = {"token_ids": [[token]], "positions": [[length + step]], **outputs}
            outputs = predict("decode", inputs)
    if len(text) > len(shown):
        yield text[len(shown) :]


def _text(predict, token_ids):
    inputs = {"token_ids": [token_ids], "lengths": [len(token_ids)]}
    return predict("detokenize", inputs)["text"][0]
