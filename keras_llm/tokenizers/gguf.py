"""Load tokenizers from the metadata of GGUF files."""

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
    kind = str(values.need("model"))
    if kind == "gpt2":
        return _byte_pair(values)
    if kind == "llama":
        return _sentence_piece(values)
    raise InputError(f'tokenizer.ggml.model is {kind!r}; only "gpt2" and "llama" are supported.')


class _Fields:
    def __init__(self, fields):
        self._fields = fields

    def get(self, name, default=None):
        return self._fields.get(f"tokenizer.ggml.{name}", default)

    def need(self, name):
        value = self.get(name)
        if value is None:
            raise InputError(f"the metadata lacks tokenizer.ggml.{name}.")
        return value

    def column(self, name, convert, length):
        values = [convert(value) for value in self.need(name)]
        if len(values) != length:
            raise InputError(
                f"tokenizer.ggml.{name} has {len(values)} entries for {length} tokens."
            )
        return values

    def roles(self, num_tokens):
        """Return the token id of each role, -1 if the file has none."""
        roles = {}
        for role, name in _ROLES.items():
            roles[role] = int(self.get(name, -1))
            if not -1 <= roles[role] < num_tokens:
                raise InputError(
                    f"tokenizer.ggml.{name} is {roles[role]}, but there are {num_tokens} tokens."
                )
        return roles


def _byte_pair(fields):
    pre_tokenizer = str(fields.need("pre"))
    if pre_tokenizer not in _PRE_TOKENIZERS:
        names = ", ".join(map(repr, _PRE_TOKENIZERS))
        raise InputError(f"tokenizer.ggml.pre is {pre_tokenizer!r}; only {names} are supported.")
    pre_tokenizer = _PRE_TOKENIZERS[pre_tokenizer]
    tokens = [str(token) for token in fields.need("tokens")]
    types = fields.column("token_type", int, len(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        duplicate = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise InputError(f"tokenizer.ggml.tokens contains {duplicate!r} twice.")
    llama3 = pre_tokenizer == "llama3"
    return BytePair(
        vocabulary,
        [str(merge) for merge in fields.need("merges")],
        pre_tokenizer,
        [t for t, kind in zip(tokens, types, strict=True) if kind in _SPECIAL_TYPES],
        **{
            role: tokens[index] if index >= 0 else None
            for role, index in fields.roles(len(tokens)).items()
        },
        ignore_merges=llama3,
        add_bos=bool(fields.get("add_bos_token", llama3)),
    )


def _sentence_piece(fields):
    tokens = [str(token) for token in fields.need("tokens")]
    model = sentencepiece_model.from_pieces(
        tokens,
        fields.column("scores", float, len(tokens)),
        fields.column("token_type", int, len(tokens)),
        fields.roles(len(tokens)),
        add_dummy_prefix=bool(fields.get("add_space_prefix", True)),
        remove_extra_whitespaces=bool(fields.get("remove_extra_whitespaces", False)),
    )
    return SentencePiece(model, escape=False, add_bos=bool(fields.get("add_bos_token", True)))
