"""Text piece by piece from a server that keeps nothing: `prefill` once, `decode` for each token."""

import numbers

import numpy as np

from keras_llm.errors import InputError
from keras_llm.export.numpy_sampling import Sampling, choose


def stream_tokens(predict, prompt, max_new_tokens, settings):
    """Continue a text.

    The text ends with the first token that has no text of its own, as end tokens have none.

    Args:
        predict: function of a signature's name and its inputs to its outputs.
        prompt: str, not empty.
        max_new_tokens: int > 0.
        settings: dict of `temperature`, `top_k`, `top_p` and `seed`.

    Yields:
        Pieces of text, none empty, none ending inside a character.

    Raises:
        InputError: naming the setting that is out of range, before anything is asked.
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
            "cache_length": length + max_new_tokens - 1,  # the last token is never read
        },
    )
    shown, so_far = "", []
    for step in range(max_new_tokens):
        token = choose(outputs.pop("logits")[0], sampling, step)
        both = np.zeros((2, step + 1), "int32")  # all new tokens, and this one alone
        both[0], both[1, 0] = [*so_far, token], token
        texts = predict("detokenize", {"token_ids": both, "lengths": [step + 1, 1]})["text"]
        text, alone = texts.tolist()
        if not alone:
            break
        so_far.append(token)
        # Half a character is shown as U+FFFD until its other half has come.
        if len(text) > len(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
        if step + 1 < max_new_tokens:
            inputs = {"token_ids": [[token]], "positions": [[length + step]], **outputs}
            outputs = predict("decode", inputs)
    if so_far:
        lengths = [len(so_far)]
        last = predict("detokenize", {"token_ids": [so_far], "lengths": lengths})["text"][0]
        if last[len(shown) :]:
            yield last[len(shown) :]
