"""Text piece by piece from a server that keeps nothing: `prefill` once, `decode` for each token."""

import numbers

import numpy as np

from keras_llm.errors import InputError
from keras_llm.export.client.sampling import choose


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
    _check(max_new_tokens, **settings)
    return _pieces(predict, prompt, max_new_tokens, settings)


def _pieces(predict, prompt, max_new_tokens, settings):
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
        token = choose(outputs.pop("logits"), step, **settings)
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


def _check(max_new_tokens, temperature, top_k, top_p, seed):
    rules = (
        ("max_new_tokens", max_new_tokens, numbers.Integral, lambda v: v > 0, "an int > 0"),
        ("temperature", temperature, numbers.Real, lambda v: 0 <= v < 1e30, "a number >= 0"),
        ("top_k", top_k, numbers.Integral, lambda v: v >= 0, "an int >= 0"),
        ("top_p", top_p, numbers.Real, lambda v: 0 < v <= 1, "in (0, 1]"),
        ("seed", seed, numbers.Integral, lambda v: -(2**31) <= v < 2**31, "an int of 32 bits"),
    )
    for name, value, kind, is_right, rule in rules:
        if not isinstance(value, kind) or isinstance(value, bool) or not is_right(value):
            raise InputError(f"`{name}` must be {rule}, got {value!r}.")
