"""Constrain generated text to a regular expression, a JSON schema or a grammar."""

import copy
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
from keras_llm.types import JSON, Spelling, Tensor

# Allow every way to divide a text into tokens. By default, llguidance allows only one where the
# grammar leaves no choice of text.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# Without flexible white space, a weak model cannot continue with spaces until the budget ends.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_END, _NEVER, _EMPTY = range(3)  # tokens of llguidance that are not text
# 0xFF marks special tokens. A grammar can only refer to names in angle brackets.
_NOT_TEXT = [b"\xff end", b"\xff never", b"\xff empty"]
# Comments, strings and regular expressions of a grammar, or a reference to tokens: <name>, <[5]>.
_TOKEN_REFERENCE = re.compile(
    r'(?:#|//)[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\])+/|(?P<reference><[^<>\s]+>)', re.DOTALL
)
_SURROGATE = re.compile("[\ud800-\udfff]")

_constraints: weakref.WeakValueDictionary[int, "Constraint"] = weakref.WeakValueDictionary()
_next_key = itertools.count()


class Constraint:
    """A constraint on the new text of each row, by a regular expression, JSON schema or grammar.

    A token is allowed if the text with it is a prefix of a matching text, and a stop token if the
    text itself matches. A text cut off by the token budget is a prefix of a matching text.

    If no token is allowed, the text is at a dead end, e.g. because no token has the required bytes.
    With a byte-level tokenizer there are no dead ends, unless a stop token is text.

    Compiled code refers to a constraint by its `key`, so keep the object while the code is used.

    Exactly one of `regex`, `json_schema` and `grammar` must be set.

    Args:
        spelling: `Spelling` of the tokenizer, see `tokenizers.spelling`.
        vocabulary_size: int, the model's vocabulary size, at least the number of spellings; ids
            without a spelling are forbidden. V.
        regex: str. The whole text matches this regular expression, in the syntax of Rust's
            `regex`: that of Python's `re` without look-around, back references and word
            boundaries.
        json_schema: dict, or str of JSON. The text is JSON on one line that satisfies the schema,
            with at most one space after a comma or colon.
        grammar: str. The whole text matches the rule `start` of this context-free grammar, in
            llguidance's dialect of the Lark syntax, without references to tokens such as `<name>`.

    Attributes:
        key: int, represents the constraint in compiled code while the object exists.
        error: None, or the error of a dead end, see `recorder`.

    Raises:
        InputError: if an argument is invalid or cannot be satisfied; the message names it.

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
        self._normal, self._first = _token_numbers(spelling, vocabulary_size)
        matcher = _matcher(spelling, self._name, _lark(self._name, value)).deep_copy()
        no_tokens = np.zeros(0, "int32")
        allowed, is_match = self._allowed_after(no_tokens, matcher, [])
        if not (allowed.any() or is_match):
            raise self._dead_end(no_tokens, matcher)
        self._records = False
        self._register({b"": matcher})

    def _register(self, matchers):
        self.error: InputError | None = None
        self._matchers = matchers  # by the tokens that they have read
        self._lock = threading.Lock()  # guards the matchers
        self.key = next(_next_key)
        _constraints[self.key] = self

    def recorder(self) -> "Constraint":
        """Return a copy for one call of compiled code, with its own key.

        At a dead end, compiled code does not raise an error, which would lose its type, but stores
        it in the copy's `error`, and then allows only stop tokens.
        """
        result = copy.copy(self)
        result._records = True
        with self._lock:
            result._register({b"": self._matchers[b""].deep_copy()})
        return result

    def allowed(
        self,
        token_ids: np.ndarray,
        counts: np.ndarray,
        stop_ids: Sequence[int] | np.ndarray = (),
        done: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return which tokens may come next.

        Args:
            token_ids: int32 array (B, N), the new tokens, padded on the right.
            counts: int32 array (B,), the number of new tokens.
            stop_ids: ints, the stop tokens; negative ones are ignored.
            done: bool array (B,), the rows to skip; None for none.

        Returns:
            Bool array (B, V). A row whose tokens are forbidden themselves is all False, a skipped
            row is all True.

        Raises:
            InputError: if a row is at a dead end.
        """
        allowed, error = self._allowed_and_error(token_ids, counts, stop_ids, done)
        if error is not None:
            raise error
        return allowed

    def _allowed_and_error(self, token_ids, counts, stop_ids, done):
        """Return the result of `allowed`, all False for dead ends, and the error of the first."""
        stop_ids = [index for index in stop_ids if index >= 0]
        done = np.zeros(len(token_ids), bool) if done is None else done
        allowed, error = np.zeros((len(token_ids), len(self._normal)), bool), None
        allowed[done] = True
        with self._lock:
            matchers = {b"": self._matchers[b""]}
            for row in np.flatnonzero(~done):
                tokens = np.ascontiguousarray(token_ids[row, : counts[row]], "int32")
                matcher = matchers[tokens.tobytes()] = self._matcher_after(tokens)
                if matcher is not None:
                    allowed[row], _ = self._allowed_after(tokens, matcher, stop_ids)
                    if error is None and not allowed[row].any():
                        error = self._dead_end(tokens, matcher)
            self._matchers = matchers
        return allowed, error

    def _matcher_after(self, tokens):
        """Return the matcher that has read some tokens, (N,); None if they are forbidden."""
        num_read = len(tokens)
        while tokens[:num_read].tobytes() not in self._matchers:
            num_read -= 1
        matcher = self._matchers[tokens[:num_read].tobytes()]
        if matcher is None or num_read == len(tokens):
            return matcher
        matcher = matcher.deep_copy()  # several rows may continue the same text
        for position in range(num_read, len(tokens)):
            number = int(self._numbers_after(tokens[:position])[tokens[position]])
            if number == _EMPTY and position == 0:
                continue
            if number <= _EMPTY or not matcher.consume_token(number):
                return None
        return matcher

    def _allowed_after(self, tokens, matcher, stop_ids):
        """Return which tokens may follow some tokens, bool (V,), and whether the text matches."""
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), "uint8"), bitorder="little")
        if matcher.is_error():  # computing the mask may set it
            return np.zeros(len(self._normal), bool), False
        is_match = bool(bits[_END])
        bits[: len(_NOT_TEXT)] = False

        def text_after(tokens):
            allowed = bits[self._numbers_after(tokens)].astype(bool)
            allowed[stop_ids] = False
            return allowed

        allowed = text_after(tokens)
        if len(tokens) == 0:
            is_empty = self._first == _EMPTY
            is_empty[stop_ids] = False
            if is_empty.any() and text_after(np.flatnonzero(is_empty)[:1]).any():
                allowed |= is_empty
        allowed[stop_ids] = is_match
        return allowed, is_match

    def _numbers_after(self, tokens):
        """Return llguidance's token for each token (V,) that follows some tokens."""
        is_first = len(tokens) == 0 or (
            self._spelling.strips_all_leading_spaces
            and len(tokens) == 1
            and self._first[tokens[0]] == _EMPTY
        )
        return self._first if is_first else self._normal

    def _dead_end(self, tokens, matcher):
        """Return the error that no token may follow some tokens."""
        spellings = [self._spelling.first, *[self._spelling.tokens] * len(tokens)]
        text = b"".join(
            s[index] or b"" for s, index in zip(spellings, tokens.tolist(), strict=False)
        )
        reason = _one_line(matcher.get_error())
        where = f"the text {text.decode(errors='replace')!r}" if text else "the text"
        verb = "continues" if text else "begins"
        reason = f" ({reason})" if reason and not reason.startswith("NoExtension") else ""
        return InputError(f"`{self._name}`: no token of the tokenizer {verb} {where}{reason}.")


def allowed_tokens(
    constraint: Any,
    text: Any,
    stop_id: int | Tensor | None,
    vocabulary_size: int,
    done: Tensor | None = None,
    is_search: bool = False,
) -> Tensor:
    """Return the tokens that a constraint allows next, in eager mode or compiled code.

    Args:
        constraint: a `Constraint`, or a tuple with its key as an int32 scalar tensor.
        text: `sampling.Text` of int32 tensors.
        stop_id: None, or int or int32 tensor (S,), the stop tokens.
        vocabulary_size: int. V.
        done: None, or bool tensor (B,), the rows to skip; they are all True.
        is_search: bool. Whether a dead end leaves a row all False instead of raising an error.

    Returns:
        Bool tensor (B, V).
    """
    key = constraint.key if isinstance(constraint, Constraint) else constraint[0]
    stop_ids = ops.convert_to_tensor(-1 if stop_id is None else stop_id, "int32")
    stop_ids = ops.reshape(stop_ids, (-1,))
    done = ops.zeros_like(text.lengths, "bool") if done is None else done
    arguments = [ops.convert_to_tensor(key, "int32"), *text, stop_ids, done]
    function = functools.partial(_allowed, is_search)
    backend = keras.backend.backend()
    if backend in ("tensorflow", "jax"):
        module = importlib.import_module(f"keras_llm.generation.{backend}")
        shape = (text.token_ids.shape[0], vocabulary_size)
        return module.call_python(function, arguments, shape, "bool")
    return ops.convert_to_tensor(function(*map(ops.convert_to_numpy, arguments)))


def _allowed(is_search, key, token_ids, begins, ends, stop_ids, done):
    """Return the result of `allowed_tokens` for arrays."""
    token_ids, begins, ends, stop_ids, done = map(
        np.asarray, (token_ids, begins, ends, stop_ids, done)
    )
    constraint = _constraints.get(int(key))
    if constraint is None:
        raise RuntimeError(
            "the `Constraint` of compiled code does not exist anymore; keep the object while the "
            "code is used."
        )
    columns = np.arange(token_ids.shape[1]) + begins[:, None]
    new_ids = np.take_along_axis(token_ids, np.minimum(columns, token_ids.shape[1] - 1), axis=1)
    if constraint.error is None or is_search:
        allowed, error = constraint._allowed_and_error(new_ids, ends - begins, stop_ids, done)
        if error is None:
            return allowed
        if constraint._records:
            constraint.error = error
        elif not is_search:
            raise error
        if is_search:
            return allowed
    allowed = np.zeros((len(token_ids), len(constraint._normal)), bool)
    allowed[:, stop_ids[stop_ids >= 0]] = True
    return allowed


@functools.lru_cache(maxsize=4)
def _token_numbers(spelling, vocabulary_size):
    """Return llguidance's token for each token, and for each as the first, int32 (V,)."""
    num_spellings = len(spelling.tokens)
    if vocabulary_size < num_spellings:
        raise InputError(
            f"`vocabulary_size` must be at least the number of spellings {num_spellings}, got "
            f"{vocabulary_size}."
        )
    number = {**_llguidance_tokenizer(spelling)[1], None: _NEVER, b"": _EMPTY}
    padding = [None] * (vocabulary_size - num_spellings)
    return tuple(
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
        if not value.isascii() and _SURROGATE.search(value):
            raise InputError(f"`{name}` must not contain surrogates, got {value!r}.")
    if name == "grammar":
        for match in _TOKEN_REFERENCE.finditer(value):
            if token := match["reference"]:
                raise InputError(f"`grammar` must not refer to tokens, got {token}; quote text.")
        return value + _OPTIONS
    if name == "regex":
        return f"start: /{llguidance.regex_to_lark(value, '')}/{_OPTIONS}"
    try:
        if isinstance(value, str):
            value = json.loads(value)
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise InputError(f"`json_schema` must be a dict, or a str of JSON, got a {kind}.")
        schema = json.dumps({"x-guidance": _JSON, **value}, allow_nan=False, ensure_ascii=False)
    except RecursionError:
        raise InputError("`json_schema` is too deeply nested.") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"`json_schema` is not JSON: {error}.") from None
    if _SURROGATE.search(schema):
        raise InputError("`json_schema` must not contain surrogates.")
    return f"start: %json {schema}{_OPTIONS}"


def _one_line(error):
    """Return the message of an error of llguidance without source locations and excerpts."""
    message = re.split(r"\n\s*\d+ \||\n<state>", error)[0]
    message = re.sub(r"^at \S+: (failed to compile JSON schema: |(?=invalid regex))", "", message)
    lines = (line.strip() for line in message.splitlines())
    return " ".join(line for line in lines if line.strip("^")).rstrip(".")
