"""Constrain generated text to a regular expression, a JSON schema or a grammar."""

import dataclasses
import functools
import importlib
import itertools
import json
import re
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm.errors import InputError
from keras_llm.types import JSON, Tensor

# Allow every way to divide a text into tokens. By default, llguidance allows only one where the
# grammar leaves no choice of text.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# Without flexible white space, a weak model cannot continue with spaces until the budget ends.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_END, _NEVER, _EMPTY = range(3)  # tokens of llguidance that are not text
_NOT_TEXT = [b"\xff<end>", b"\xff<never>", b"\xff<empty>"]  # 0xFF marks special tokens

_constraints: weakref.WeakValueDictionary[int, "Constraint"] = weakref.WeakValueDictionary()
_next_key = itertools.count()


@dataclasses.dataclass(frozen=True, eq=False)
class Spelling:
    """The UTF-8 bytes of each token, by id. Tokens may begin and end inside a character.

    Attributes:
        tokens: list of bytes, None for tokens without text, such as special tokens.
        first: the same for the first token of a text, where decoding may remove a space.
        repeats: bool. Whether the token after an empty first token also counts as the first.
    """

    tokens: list[bytes | None]
    first: list[bytes | None]
    repeats: bool = False


class Constraint:
    """A constraint on the new text of each row, by a regular expression, JSON schema or grammar.

    A token is allowed if the text with it is the beginning of a text that fulfills the constraint,
    and a stop token if the text itself fulfills it. So a text that the token budget ends is the
    beginning of a text that fulfills the constraint.

    Exactly one of `regex`, `json_schema` and `grammar` must be set.

    Args:
        spelling: `Spelling` of the tokenizer, see `tokenizers.spelling.spelling`.
        vocabulary_size: int, the model's vocabulary size; ids without a spelling are forbidden. V.
        regex: str. The whole text matches this regular expression, in the syntax of Rust's
            `regex`: that of Python's `re` without look-around, back references and word
            boundaries.
        json_schema: dict, or str of JSON. The text is JSON on one line that satisfies the schema,
            with at most one space after a comma or colon.
        grammar: str. The whole text matches the rule `start` of this context-free grammar, in
            llguidance's dialect of the Lark syntax.

    Attributes:
        key: int, represents the constraint in compiled code while the object exists.
        error: None, or the error that the last call of `allowed` raised.

    Raises:
        InputError: if an argument is invalid or cannot be fulfilled; the message names it.

    Reference:
        llguidance, https://github.com/guidance-ai/llguidance
    """

    def __init__(
        self,
        spelling: Spelling,
        vocabulary_size: int,
        regex: str | None = None,
        json_schema: JSON | str | None = None,
        grammar: str | None = None,
    ) -> None:
        values = {"regex": regex, "json_schema": json_schema, "grammar": grammar}
        values = {name: value for name, value in values.items() if value is not None}
        if not values:
            raise InputError("one of `regex`, `json_schema` and `grammar` must be set.")
        if len(values) > 1:
            first, second, *_ = values
            raise InputError(f"`{first}` and `{second}` cannot both be set.")
        self._name, value = values.popitem()
        self._spelling = spelling
        self._normal, self._first = _indices(spelling, vocabulary_size)
        matcher = _matcher(spelling, self._name, _lark(self._name, value))
        self._matchers = {b"": matcher.deep_copy()}
        self._lock = threading.Lock()  # guards the matchers, by the tokens they have read
        self.error: InputError | None = None
        self.allowed(np.zeros((1, 0), "int32"), np.zeros(1, "int32"))
        self.key = next(_next_key)
        _constraints[self.key] = self

    def allowed(
        self, token_ids: np.ndarray, counts: np.ndarray, stop_ids: Sequence[int] | np.ndarray = ()
    ) -> np.ndarray:
        """Return which tokens may come next.

        Args:
            token_ids: int32 array (B, N), the new tokens, padded on the right.
            counts: int32 array (B,), the number of new tokens.
            stop_ids: ints, the stop tokens; negative ones are ignored.

        Returns:
            Bool array (B, V). A row whose tokens are forbidden themselves is all False.

        Raises:
            InputError: if no token may follow, e.g. because no token has the required bytes.
        """
        self.error = None
        stop_ids = [index for index in stop_ids if index >= 0]
        allowed = np.zeros((len(token_ids), len(self._normal)), bool)
        with self._lock:
            matchers = {b"": self._matchers[b""]}
            for row, (tokens, count) in enumerate(zip(token_ids, counts, strict=True)):
                tokens = np.ascontiguousarray(tokens[:count], "int32")
                matcher = matchers[tokens.tobytes()] = self._read(tokens)
                if matcher is not None:
                    allowed[row] = self._next(matcher, tokens, stop_ids)
            self._matchers = matchers
        return allowed

    def _read(self, tokens):
        """Return the matcher that has read some tokens, (N,); None if they are forbidden."""
        known = len(tokens)
        while tokens[:known].tobytes() not in self._matchers:
            known -= 1
        matcher = self._matchers[tokens[:known].tobytes()]
        if matcher is None or known == len(tokens):
            return matcher
        matcher = matcher.deep_copy()  # several rows may continue the same text
        for position in range(known, len(tokens)):
            index = int(self._at(tokens[:position])[tokens[position]])
            if index == _EMPTY and position == 0:
                continue
            if index <= _EMPTY or not matcher.consume_token(index):
                return None
        return matcher

    def _next(self, matcher, tokens, stop_ids):
        """Return the tokens that may follow some tokens, bool (V,)."""
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), "uint8"), bitorder="little")
        is_text = bits[len(_NOT_TEXT) :].any()
        accepts = bool(bits[_END]) and not matcher.is_error()
        if matcher.is_error() or not (is_text or accepts):
            self.error = InputError(self._dead_end(matcher, tokens))
            raise self.error
        bits[[_END, _NEVER, _EMPTY]] = False, False, is_text and len(tokens) == 0
        allowed = bits[self._at(tokens)].astype(bool)
        allowed[stop_ids] = accepts
        return allowed

    def _at(self, before):
        """Return llguidance's token for each token (V,) that follows the tokens `before`."""
        is_first = len(before) == 0 or (
            self._spelling.repeats and len(before) == 1 and self._first[before[0]] == _EMPTY
        )
        return self._first if is_first else self._normal

    def _dead_end(self, matcher, tokens):
        """Describe why no token may follow some tokens."""
        spellings = [self._spelling.first, *[self._spelling.tokens] * len(tokens)]
        text = b"".join(
            s[index] or b"" for s, index in zip(spellings, tokens.tolist(), strict=False)
        )
        reason = _one_line(matcher.get_error())
        where = f"the text {text.decode(errors='replace')!r}" if text else "the text"
        verb = "continues" if text else "begins"
        reason = f" ({reason})" if reason and not reason.startswith("NoExtension") else ""
        return f"`{self._name}`: no token of the tokenizer {verb} {where}{reason}."


def allowed_tokens(
    constraint: Any, text: Any, stop_id: int | Tensor | None, vocabulary_size: int
) -> Tensor:
    """Return the tokens that a constraint allows next, in eager mode or compiled code.

    Args:
        constraint: a `Constraint`, or a tuple with its key as an int32 scalar tensor.
        text: `sampling.Text` of int32 tensors.
        stop_id: None, or int or int32 tensor (S,), the stop tokens.
        vocabulary_size: int. V.

    Returns:
        Bool tensor (B, V).
    """
    key = constraint.key if isinstance(constraint, Constraint) else constraint[0]
    stop_ids = ops.convert_to_tensor(-1 if stop_id is None else stop_id, "int32")
    stop_ids = ops.reshape(stop_ids, (-1,))
    arguments = [ops.convert_to_tensor(key, "int32"), *text, stop_ids]
    backend = keras.backend.backend()
    if backend in ("tensorflow", "jax"):
        module = importlib.import_module(f"keras_llm.generation.{backend}")
        shape = (text.token_ids.shape[0], vocabulary_size)
        return module.call_python(_allowed, arguments, shape, "bool")
    return ops.convert_to_tensor(_allowed(*map(ops.convert_to_numpy, arguments)))


def _allowed(key, token_ids, begins, ends, stop_ids):
    token_ids, begins, ends = np.asarray(token_ids), np.asarray(begins), np.asarray(ends)
    columns = np.arange(token_ids.shape[1]) + begins[:, None]
    new_ids = np.take_along_axis(token_ids, np.minimum(columns, token_ids.shape[1] - 1), axis=1)
    return _constraints[int(key)].allowed(new_ids, ends - begins, np.asarray(stop_ids))


def _indices(spelling, vocabulary_size):
    """Return llguidance's token for each token, and for each as the first, int32 (V,)."""
    number = _llguidance_tokenizer(spelling)[1]
    number = {None: _NEVER, b"": _EMPTY, **number}
    padding = [None] * (vocabulary_size - len(spelling.tokens))
    return (
        np.array([number[text] for text in [*texts, *padding]], "int32")
        for texts in (spelling.tokens, spelling.first)
    )


class _Tokens:
    """A tokenizer in the form that `llguidance.LLTokenizer` reads."""

    is_tokenizer_wrapper = True
    eos_token_id = _END
    bos_token_id = None
    special_token_ids = tuple(range(len(_NOT_TEXT)))

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, text):
        """Encode text; not used with `no_forcing`."""
        return []


@functools.lru_cache(maxsize=4)
def _llguidance_tokenizer(spelling):
    """Return an `LLTokenizer` of the distinct spellings, and a dict of spelling to its token."""
    import llguidance

    texts = dict.fromkeys(text for text in [*spelling.tokens, *spelling.first] if text)
    number = {text: index for index, text in enumerate(texts, len(_NOT_TEXT))}
    return llguidance.LLTokenizer(_Tokens([*_NOT_TEXT, *texts])), number


@functools.lru_cache(maxsize=32)
def _matcher(spelling, name, lark):
    """Return an `LLMatcher` that has read nothing."""
    import llguidance

    matcher = llguidance.LLMatcher(_llguidance_tokenizer(spelling)[0], lark, log_level=0)
    if matcher.is_error():
        raise InputError(f"`{name}` is invalid: {_one_line(matcher.get_error())}.")
    return matcher


def _lark(name, value):
    """Return a Lark grammar for llguidance."""
    import llguidance

    if name != "json_schema":
        if not isinstance(value, str):
            raise InputError(f"`{name}` must be a str, got {type(value).__name__}.")
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise InputError(f"`{name}` must not contain surrogates, got {value!r}.")
    if name == "grammar":
        return value + _OPTIONS
    if name == "regex":
        return f"start: /{llguidance.regex_to_lark(value, '')}/{_OPTIONS}"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"`json_schema` is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"`json_schema` must be a dict, or a str of JSON, got {value!r}.")
    try:
        schema = json.dumps({"x-guidance": _JSON, **value}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"`json_schema` is not JSON: {error}.") from None
    return f"start: %json {schema}{_OPTIONS}"


def _one_line(error):
    """Return the message of an error of llguidance without its places and excerpts of our text."""
    message = re.split(r"\n\s*\d+ \||\n<state>", error)[0]
    message = re.sub(r"^at \S+: (failed to compile JSON schema: |(?=invalid regex))", "", message)
    lines = (line.strip() for line in message.splitlines())
    return " ".join(line for line in lines if line.strip("^")).rstrip(".")
