"""Text piece by piece from a server that keeps nothing: `prefill` once, `decode` for each token."""

import numbers

from keras_llm.errors import InputError
from keras_llm.export.sampling import Sampling, choose


def stream_tokens(predict, prompt, max_new_tokens, settings):
    """Continue a text.

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
    text, shown, so_far = "", "", []
    for step in range(max_new_tokens):
        token = choose(outputs.pop("logits")[0], sampling, step)
        if predict("is_end", {"token_ids": [[token]]})["is_end"][0, 0]:
            break
        so_far.append(token)
        text = _text(predict, so_far)
        # Half a character is shown as U+FFFD until its other half has come.
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
