"""Load tokenizers from the metadata of GGUF files."""

import math
import numbers

import numpy as np

from keras_llm.errors import InputError
from keras_llm.tokenizers import sentencepiece_model
from keras_llm.tokenizers.byte_pair import BytePair
from keras_llm.tokenizers.sentencepiece import SentencePiece
from keras_llm.types import JSON

_PRE_TOKENIZERS = {
    "gpt-2": "gpt2",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen",
    "smollm": "smollm",
}
_KINDS = {
    str: str,
    bool: (bool, np.bool_),
    int: numbers.Integral,
    float: numbers.Real,
    list: (list, tuple, np.ndarray),
}
_SPECIAL_TYPES = (2, 3, 4)  # unknown, control, user defined
_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "padding_token_id",
    "unk": "unknown_token_id",
}


def from_gguf_metadata(fields: JSON) -> BytePair | SentencePiece:
    """Load the tokenizer of a GGUF file.

    The ids equal those of llama.cpp, except around user-defined tokens: `BytePair` parses them
    only with `parse_special`, and `SentencePiece` adds no space after them.

    Args:
        fields: dict of the file's metadata with the keys of the file ("tokenizer.ggml.model",
            "tokenizer.ggml.tokens", ...) and plain Python or NumPy values.

    Returns:
        A `BytePair` ("gpt2") or `SentencePiece` ("llama"). `encode(text, parse_special=True)`
        parses unknown, control and user-defined tokens.

    Raises:
        InputError: if a field is missing or not supported; the message names it.
    """
    values = _Fields(fields)
    kind = values.need("model", str)
    if kind == "gpt2":
        return _byte_pair(values)
    if kind == "llama":
        return _sentence_piece(values)
    raise InputError(f'tokenizer.ggml.model is {kind!r}; only "gpt2" and "llama" are supported.')


class _Fields:
    def __init__(self, fields):
        self._fields = fields

    def get(self, name, kind, default):
        """Return the value of a field of a kind, or `default` if the file lacks it."""
        value = self._fields.get(f"tokenizer.ggml.{name}")
        if value is None:
            return default
        if not isinstance(value, _KINDS[kind]):
            raise InputError(f"tokenizer.ggml.{name} must be a {kind.__name__}, got {value!r}.")
        return kind(value)

    def need(self, name, kind):
        value = self.get(name, kind, None)
        if value is None:
            raise InputError(f"the metadata lacks tokenizer.ggml.{name}.")
        return value

    def column(self, name, kind, length=None):
        """Return a list of values of a kind, of a length if it is given."""
        values = self.need(name, list)
        for index, value in enumerate(values):
            is_valid = isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
            if not is_valid or (kind is float and not math.isfinite(value)):
                raise InputError(
                    f"tokenizer.ggml.{name} {index} must be a {kind.__name__}, got {value!r}."
                )
        if length is not None and len(values) != length:
            raise InputError(
                f"tokenizer.ggml.{name} has {len(values)} entries for {length} tokens."
            )
        return [kind(value) for value in values]

    def types(self, length):
        """Return the type of each token, as in SentencePiece."""
        types = self.column("token_type", int, length)
        if not set(types) <= set(range(1, 7)):
            raise InputError("tokenizer.ggml.token_type must have values in 1 .. 6.")
        return types

    def roles(self, num_tokens):
        """Return the token id of each role, -1 if the file has none."""
        roles = {}
        for role, name in _ROLES.items():
            roles[role] = self.get(name, int, -1)
            if not -1 <= roles[role] < num_tokens:
                raise InputError(
                    f"tokenizer.ggml.{name} is {roles[role]}, but there are {num_tokens} tokens."
                )
        return roles


def _byte_pair(fields):
    pre_tokenizer = fields.need("pre", str)
    if pre_tokenizer not in _PRE_TOKENIZERS:
        names = ", ".join(map(repr, _PRE_TOKENIZERS))
        raise InputError(f"tokenizer.ggml.pre is {pre_tokenizer!r}; only {names} are supported.")
    pre_tokenizer = _PRE_TOKENIZERS[pre_tokenizer]
    tokens = fields.column("tokens", str)
    types = fields.types(len(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        duplicate = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise InputError(f"tokenizer.ggml.tokens contains {duplicate!r} twice.")
    llama3 = pre_tokenizer == "llama3"
    return BytePair(
        vocabulary,
        fields.column("merges", str),
        pre_tokenizer,
        [t for t, kind in zip(tokens, types, strict=True) if kind in _SPECIAL_TYPES],
        **{
            role: tokens[index] if index >= 0 else None
            for role, index in fields.roles(len(tokens)).items()
        },
        ignore_merges=llama3,
        add_bos=fields.get("add_bos_token", bool, llama3),
    )


def _sentence_piece(fields):
    tokens = fields.column("tokens", str)
    model = sentencepiece_model.from_pieces(
        tokens,
        fields.column("scores", float, len(tokens)),
        fields.types(len(tokens)),
        fields.roles(len(tokens)),
        add_dummy_prefix=fields.get("add_space_prefix", bool, True),
        remove_extra_whitespaces=fields.get("remove_extra_whitespaces", bool, False),
    )
    return SentencePiece(model, escape=False, add_bos=fields.get("add_bos_token", bool, True))
