"""Check generation settings and convert them to arrays."""

import dataclasses
import functools
import numbers
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_llm.errors import InputError
from keras_llm.generation import SETTINGS, Constraint, Sampling, check_top_k
from keras_llm.tasks.search import SEARCH_OPTIONS
from keras_llm.tokenizers import Tokenizer
from keras_llm.tokenizers.spelling import spelling

_BANNED = -1e30
CONSTRAINTS = ("regex", "json_schema", "grammar")
_WORDS = ("logit_bias", "banned", "forced", *CONSTRAINTS)
# Options of a call that only determine what is returned.
RESULT_OPTIONS = {"num_return_sequences": 1, "return_details": False, "num_alternatives": 0}
KNOWN = (
    *("max_new_tokens", "stop", "stop_token_ids"),
    *RESULT_OPTIONS,
    *SETTINGS,
    *_WORDS,
    *SEARCH_OPTIONS,
)


def sampling_of(
    rows: int,
    settings: dict[str, Any],
    tokenizer: Tokenizer,
    vocabulary_size: int,
    samples: int = 1,
    continues: bool = False,
) -> Sampling:
    """Check the settings of a batch and return its `Sampling`.

    Args:
        rows: int, the number of prompts.
        settings: dict of the numbers of `Sampling` (`seed` is an int, a list with one int per
            prompt, or None for random seeds), `logit_bias`, `banned`, `forced`, `regex`,
            `json_schema` and `grammar`.
        tokenizer: the task's tokenizer. Ids outside its vocabulary are never generated.
        vocabulary_size: int, the model's vocabulary size.
        samples: int, the number of sequences per prompt; sequence i uses `seed + i`.
        continues: bool. Whether `forced` continues the text of the prompts.

    Raises:
        InputError: if a setting is unknown or invalid, naming it.
    """
    settings = dict(settings)
    words = {name: settings.pop(name, None) for name in _WORDS}
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise InputError(f"unknown setting `{unknown[0]}`; known: {', '.join(KNOWN)}.")
    seeds = _seeds(settings.pop("seed", None), rows)
    for seed in seeds:
        Sampling(**settings, seed=seed).validate()
    check_top_k(settings.get("top_k", 0), vocabulary_size)
    if len(seeds) > 1 or samples > 1:
        seeds = [seed + i for seed in np.resize(seeds, rows).tolist() for i in range(samples)]
    seeds = (np.array(seeds, "int64") + 2**31) % 2**32 - 2**31
    sampling = Sampling(**settings, seed=seeds.astype("int32"))
    bias = {} if words["logit_bias"] is None else words["logit_bias"]
    if not isinstance(bias, dict):
        raise InputError(f"`logit_bias` must be a dict of token to number, got {bias!r}.")
    banned = words["banned"] or ()
    if isinstance(banned, str) or not isinstance(banned, (list, tuple)):
        raise InputError(f"`banned` must be a list of tokens, got {banned!r}.")
    spare = spare_bias(tokenizer, vocabulary_size)
    if bias or banned:
        row = np.zeros((1, vocabulary_size), "float32") if spare is None else spare
        for token, value in bias.items():
            is_number = isinstance(value, numbers.Real)
            if not is_number or not abs(value) <= -_BANNED:
                raise InputError(
                    f"`logit_bias` of {token!r} must be a number in -1e30 .. 1e30, got {value!r}."
                )
            row[0, _token_id("logit_bias", token, tokenizer, vocabulary_size)] += value
        for token in banned:
            row[0, _token_id("banned", token, tokenizer, vocabulary_size)] = _BANNED
        if np.all(row <= _BANNED / 2):
            raise InputError("`logit_bias` and `banned` must leave at least one token.")
        spare = row
    sampling = sampling._replace(logit_bias=spare)
    if words["forced"]:
        if not isinstance(words["forced"], str):
            raise InputError(f"`forced` must be a str, got {words['forced']!r}.")
        encode = tokenizer.encode_continuation if continues else tokenizer.encode
        forced = np.array([encode(words["forced"])], "int32")
        if spare is not None and np.any(spare[0, forced] <= _BANNED / 2):
            raise InputError("`forced` must not need a token that `banned` forbids.")
        sampling = sampling._replace(forced_tokens=forced)
    constraints = {name: words[name] for name in CONSTRAINTS if words[name] is not None}
    if constraints:
        if tokenizer.eos_id < 0:
            raise InputError("`tokenizer` has no end token, so that a text could never end.")
        spellings = _spelling(tokenizer, vocabulary_size)
        constraint = Constraint(spellings, vocabulary_size, **constraints)
        sampling = sampling._replace(constraint=constraint)
    return sampling


@functools.lru_cache(maxsize=4)
def _spelling(tokenizer, vocabulary_size):
    """Return the `Spelling` of the tokens that the model has."""
    spellings = spelling(tokenizer)
    if tokenizer.vocabulary_size <= vocabulary_size:
        return spellings
    tokens, first = (row[:vocabulary_size] for row in (spellings.tokens, spellings.first))
    return dataclasses.replace(spellings, tokens=tokens, first=first)


def spare_bias(tokenizer: Tokenizer, vocabulary_size: int) -> np.ndarray | None:
    """Return a `logit_bias`, float32 (1, V), that bans model ids outside the tokenizer.

    Returns None if there are no such ids.
    """
    if tokenizer.vocabulary_size >= vocabulary_size:
        return None
    spare = np.arange(vocabulary_size) >= tokenizer.vocabulary_size
    return np.where(spare, _BANNED, 0.0).astype("float32")[None]


def budget_of(max_new_tokens: int) -> np.ndarray:
    """Check `max_new_tokens` and return it as int32 (1,)."""
    if not isinstance(max_new_tokens, numbers.Integral) or not 0 < max_new_tokens < 2**31:
        raise InputError(f"`max_new_tokens` must be a positive int, got {max_new_tokens!r}.")
    return np.array([max_new_tokens], "int32")


def count_of(name: str, value: int, least: int) -> int:
    """Check that `value` is an int >= `least` and return it."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"`{name}` must be an int >= {least}, got {value!r}.")
    return int(value)


def stops_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Check the stop strings and return them as a tuple."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for text in stops:
        if not isinstance(text, str) or not text:
            raise InputError(f"`stop` must be a non-empty str or a list of them, got {text!r}.")
    return stops


def stop_ids_of(stop_token_ids: int | Sequence[int], vocabulary_size: int) -> tuple[int, ...]:
    """Check the token ids that end a text and return them as a tuple."""
    ids = stop_token_ids if isinstance(stop_token_ids, (list, tuple)) else (stop_token_ids,)
    for token in ids:
        is_int = isinstance(token, numbers.Integral) and not isinstance(token, bool)
        if not is_int or not 0 <= token < vocabulary_size:
            raise InputError(
                f"`stop_token_ids` must be ids in 0 .. {vocabulary_size - 1}, got {token!r}."
            )
    return tuple(map(int, ids))


def cut_at(text: str, stops: Iterable[str]) -> tuple[str, bool]:
    """Return the text up to the first stop string, and whether one occurs."""
    starts = [start for stop in stops if (start := text.find(stop)) >= 0]
    return (text[: min(starts)], True) if starts else (text, False)


def pieces_until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yield pieces of text up to the first stop string.

    A suffix that may be the beginning of a stop string is held back until the next piece.
    """
    held = ""
    for piece in pieces:
        text, is_over = cut_at(held + piece, stops)
        if is_over:
            if text:
                yield text
            return
        longest = min(len(text), max(map(len, stops), default=1) - 1)
        keep = next(
            (n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0
        )
        held = text[len(text) - keep :]
        if len(text) > keep:
            yield text[: len(text) - keep]
    if held:
        yield held


def _seeds(seed, rows):
    if seed is None:
        return [random.getrandbits(31) for _ in range(rows)]
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    if len(seeds) not in (1, rows):
        raise InputError(
            f"`seed` must be an int or a list of {rows} ints, one per prompt, got {len(seeds)}."
        )
    return seeds


def _token_id(name, token, tokenizer, vocabulary_size):
    if isinstance(token, numbers.Integral) and not isinstance(token, bool):
        if 0 <= token < vocabulary_size:
            return token
        raise InputError(f"`{name}`: token ids must be in 0 .. {vocabulary_size - 1}, got {token}.")
    if not isinstance(token, str):
        raise InputError(f"`{name}`: a token must be a str or an int id, got {token!r}.")
    ids = tokenizer.encode(token)
    if len(ids) != 1:
        raise InputError(f"`{name}`: {token!r} must be one token, got {len(ids)} tokens.")
    return ids[0]
