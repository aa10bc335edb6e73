"""Implement byte-level byte-pair encoding, as in GPT-2, Llama 3, Qwen and SmolLM."""

import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, cast

import tokenizers

from keras_llm.errors import InputError, require_list
from keras_llm.files import read_utf8
from keras_llm.json_files import check_arguments, read_json
from keras_llm.tokenizers.base import MASKS, Tokenizer, checked_batch
from keras_llm.tokenizers.graph.byte_pair import BytePairGraph
from keras_llm.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from keras_llm.tokenizers.special_tokens import checked_flags
from keras_llm.types import JSON, PathLike, Tensor

_VOCABULARY_FILE, _MERGES_FILE = "vocab.json", "merges.txt"
_PAD, _BOS, _EOS = "<|pad|>", "<|bos|>", "<|eos|>"


def _bytes_to_characters() -> list[str]:
    """Return the printable characters that GPT-2 writes for the 256 bytes, a list of str."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [characters[byte] for byte in range(256)]


CHARACTERS = _bytes_to_characters()
_BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}


class BytePair(Tokenizer):
    """A byte-level byte-pair tokenizer.

    Text is split into words. In each word, the adjacent pair that was learned first is merged,
    until no learned pair is left. A vocabulary with all 256 bytes can represent any text, so
    `decode(encode(text)) == text` unless the text is normalized. Bytes outside the vocabulary are
    dropped, as in the original.

    Args:
        vocabulary: dict str -> id, with bytes written as in GPT-2 (a space is "Ġ").
        merges: list of str "left right", in the order in which they were learned.
        pre_tokenizer: how to split text into words: "gpt2", "llama3", "qwen" or "smollm".
        special_tokens: dict str -> id, or strs in `vocabulary`. Together with the vocabulary,
            their ids are 0..V-1.
        bos, eos, pad, unk: str, special tokens or tokens, or None. `pad` defaults to the end
            token.
        normalization: "NFC", or None for no normalization. Graphs use the NFC of TensorFlow's
            Unicode tables, which does not reorder combining marks added in Unicode 10 or later.
        ignore_merges: bool. Whether a word in the vocabulary is encoded as that token,
            regardless of the merges (Llama 3).
        add_bos: bool. Whether a text passed to the model starts with the begin token.
        lstrip, rstrip: strs, the special tokens that include the white space before or after them
            when parsed.
        single_word: strs, the special tokens that are not parsed next to a letter, number or
            underscore.
        normalized: strs, the special tokens that are parsed in normalized text.

    Raises:
        InputError: if an argument is invalid; the message names it.

    Example:
    >>> tok = BytePair.train(["low lower lowest"] * 9, vocabulary_size=270)
    >>> tok.decode(tok.encode("slower 🙂"))
    'slower 🙂'

    Reference:
        Sennrich et al., 2016, "Neural Machine Translation of Rare Words with Subword Units";
        Radford et al., 2019, "Language Models are Unsupervised Multitask Learners", 2.2.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: Iterable[str],
        pre_tokenizer: str = "gpt2",
        special_tokens: dict[str, int] | Sequence[str] = (),
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        unk: str | None = None,
        normalization: str | None = None,
        ignore_merges: bool = False,
        add_bos: bool = True,
        lstrip: Iterable[str] = (),
        rstrip: Iterable[str] = (),
        single_word: Iterable[str] = (),
        normalized: Iterable[str] = (),
    ) -> None:
        if pre_tokenizer not in PRE_TOKENIZERS:
            names = ", ".join(map(repr, PRE_TOKENIZERS))
            raise InputError(f"`pre_tokenizer` must be one of {names}, got {pre_tokenizer!r}.")
        if normalization not in (None, "NFC"):
            raise InputError(f'`normalization` must be None or "NFC", got {normalization!r}.')
        self.vocabulary, self.special_tokens = _checked_ids(vocabulary, special_tokens)
        self.merges = _checked_merges(merges, self.vocabulary)
        self.pre_tokenizer = pre_tokenizer
        self.normalization = normalization
        self.ignore_merges = bool(ignore_merges)
        self.vocabulary_size = len(self.vocabulary)
        self.roles = {"bos": bos, "eos": eos, "pad": pad, "unk": unk}
        for role, token in self.roles.items():
            if token is not None and token not in self.vocabulary:
                raise InputError(f"`{role}` is {token!r}, which is not in `vocabulary`.")
        self.bos_id, self.eos_id, self.unk_id = (
            self.vocabulary.get(token, -1) for token in (bos, eos, unk)
        )
        self.pad_id = self.vocabulary.get(pad, max(self.eos_id, 0))
        self.add_bos = bool(add_bos) and bos is not None
        self.flags = checked_flags(
            self.special_tokens,
            lstrip=lstrip,
            rstrip=rstrip,
            single_word=single_word,
            normalized=normalized,
        )
        masks = [token for token in MASKS if token in self.special_tokens]
        self.mask_id = self.vocabulary[masks[0]] if masks else -1
        self.mask_takes_space = bool(masks) and masks[0] in self.flags["lstrip"]

    @classmethod
    def train(
        cls,
        files_or_iterable: str | pathlib.Path | Iterable[str | pathlib.Path],
        vocabulary_size: int = 8000,
        pre_tokenizer: str = "gpt2",
        special_tokens: Iterable[str] = (),
    ) -> Self:
        """Train a tokenizer.

        Args:
            files_or_iterable: a path (str or Path) or list of Paths of UTF-8 text files, or an
                iterable of str, one per text.
            vocabulary_size: int, the maximum number of tokens: 256 bytes, the special tokens and
                as many merges as the text yields. V.
            pre_tokenizer: see the class.
            special_tokens: strs, such as "<|im_start|>", that follow the padding, begin and end
                tokens, which have the ids 0, 1 and 2.

        Returns:
            A `BytePair`. The same texts yield the same tokenizer.

        Raises:
            InputError: if there is no text, or `vocabulary_size` is too small.
        """
        require_list("special_tokens", special_tokens)
        special_tokens = list(dict.fromkeys([_PAD, _BOS, _EOS, *special_tokens]))
        least = 256 + len(special_tokens)
        if vocabulary_size < least:
            raise InputError(f"`vocabulary_size` must be at least {least}, got {vocabulary_size}.")
        if pre_tokenizer not in PRE_TOKENIZERS:
            names = ", ".join(map(repr, PRE_TOKENIZERS))
            raise InputError(f"`pre_tokenizer` must be one of {names}, got {pre_tokenizer!r}.")
        rust = tokenizers.Tokenizer(tokenizers.models.BPE())
        rust.pre_tokenizer = PRE_TOKENIZERS[pre_tokenizer].in_rust()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=special_tokens,
            initial_alphabet=CHARACTERS,
            show_progress=False,
        )
        rust.train_from_iterator(texts_of("BytePair.train", files_or_iterable), trainer)
        model = json.loads(rust.to_str())["model"]
        merges = [" ".join(merge) for merge in model["merges"]]
        return cls(
            model["vocab"], merges, pre_tokenizer, special_tokens, bos=_BOS, eos=_EOS, pad=_PAD
        )

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Encode a str as a list of token ids, without begin or end token.

        Args:
            text: str.
            parse_special: bool. Whether special tokens in the text become their ids; otherwise
                they are plain text. Never use True for text that a user typed.
        """
        rust = self.rust if parse_special else self._plain
        return rust.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str], parse_special: bool = False) -> list[list[int]]:
        rust = self.rust if parse_special else self._plain
        encodings = rust.encode_batch_fast(checked_batch(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._plain.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int]) -> str:
        token_bytes = self._token_bytes
        try:
            return b"".join([token_bytes[i] for i in ids]).decode("utf-8", "replace")
        except KeyError as error:
            raise InputError(f"`ids`: {error} is not in 0 to {len(token_bytes) - 1}.") from None

    def token(self, index: int) -> str:
        return cast(str, self.rust.id_to_token(index)) if index >= 0 else ""

    def tokenize(self, strings: Tensor) -> Tensor:
        return self._graph.tokenize(strings)

    def tokenize_with_offsets(self, strings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._graph.tokenize_with_offsets(strings)

    def detokenize(self, ids: Tensor) -> Tensor:
        return self._graph.detokenize(ids)

    def graph_resources(self) -> list[Any]:
        return self._graph.resources

    def _normalize_in_graph(self, strings: Tensor) -> Tensor:
        return self._graph.normalize(strings)

    def _is_partial(self, text: str) -> bool:
        return text.endswith("\ufffd")

    def _save_files(self, folder: pathlib.Path) -> JSON:
        text = json.dumps(self.vocabulary, ensure_ascii=False)
        (folder / _VOCABULARY_FILE).write_text(text, "utf-8")
        text = "".join(merge + "\n" for merge in ("#version: 0.2", *self.merges))
        (folder / _MERGES_FILE).write_text(text, "utf-8")
        return {
            "pre_tokenizer": self.pre_tokenizer,
            "special_tokens": list(self.special_tokens),
            **self.roles,
            "normalization": self.normalization,
            "ignore_merges": self.ignore_merges,
            "add_bos": self.add_bos,
            **self.flags,
        }

    @classmethod
    def _load_files(cls, folder: pathlib.Path, config: JSON) -> Self:
        vocabulary = read_json(folder / _VOCABULARY_FILE)
        merges = read_merges(folder / _MERGES_FILE)
        options = {name: value for name, value in config.items() if name != "class"}
        check_arguments(cls, options, folder / "config.json")
        try:
            return cls(vocabulary, merges, **options)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The `tokenizers.Tokenizer` that treats special tokens as plain text."""
        return self._in_rust()

    @functools.cached_property
    def rust(self) -> tokenizers.Tokenizer:
        """The `tokenizers.Tokenizer` that parses special tokens."""
        rust = self._in_rust()
        rust.add_special_tokens([token.in_rust() for token in self._special])
        return rust

    def _in_rust(self) -> tokenizers.Tokenizer:
        merges = [tuple(merge.split(" ")) for merge in self.merges]
        model = tokenizers.models.BPE(self.vocabulary, merges, ignore_merges=self.ignore_merges)
        rust = tokenizers.Tokenizer(model)
        if self.normalization:
            rust.normalizer = tokenizers.normalizers.NFC()
        rust.pre_tokenizer = PRE_TOKENIZERS[self.pre_tokenizer].in_rust()
        rust.decoder = tokenizers.decoders.ByteLevel()
        return rust

    @functools.cached_property
    def _bytes(self) -> list[bytes | None]:
        """The bytes of every token by id; None for special tokens, which words never contain."""
        tokens: list[bytes | None] = [None] * self.vocabulary_size
        for token, index in self.vocabulary.items():
            if token not in self.special_tokens and all(c in _BYTES for c in token):
                tokens[index] = bytes(_BYTES[c] for c in token)
        return tokens

    @functools.cached_property
    def _token_bytes(self) -> dict[int, bytes]:
        """The decoded bytes of every id: dict id -> bytes, ordered by id."""
        token_bytes: dict[int, Any] = dict(enumerate(self._bytes))
        for token, index in self.vocabulary.items():
            if token_bytes[index] is None:
                token_bytes[index] = token.encode()
        for index in (self.pad_id, self.bos_id, self.eos_id):
            if index >= 0:
                token_bytes[index] = b""
        return token_bytes

    @functools.cached_property
    def _graph(self) -> BytePairGraph:
        model = self._plain.model
        whole_words = {}  # tokens that the merges build completely
        for token, index in self.vocabulary.items():
            if self._bytes[index] and [t.id for t in model.tokenize(token)] == [index]:
                whole_words[self._bytes[index]] = index
        merges = [merge.split(" ") for merge in self.merges]
        vocabulary = self.vocabulary
        return BytePairGraph(
            pre_tokenizer=PRE_TOKENIZERS[self.pre_tokenizer],
            normalization=self.normalization,
            byte_ids=[vocabulary.get(character, -1) for character in CHARACTERS],
            merges=[(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in merges],
            whole_words=whole_words,
            spelled=list(self._token_bytes.values()),
        )


def texts_of(
    caller: str, source: str | pathlib.Path | Iterable[str | pathlib.Path]
) -> Iterator[str]:
    """Yield the non-empty texts of `files_or_iterable`.

    Raises:
        InputError: if there is no text, or a file cannot be read.
    """
    if isinstance(source, (str, pathlib.Path)):
        source = [pathlib.Path(source)]
    has_text = False
    for item in source:
        text = read_utf8(item) if isinstance(item, pathlib.Path) else item
        if text:
            has_text = True
            yield text
    if not has_text:
        raise InputError(f"{caller}: `files_or_iterable` has no text.")


def read_merges(path: PathLike) -> list[str]:
    """Read the merges of a merges.txt, a list of str "left right"."""
    lines = read_utf8(path).split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    return [line for line in lines if line]


def _checked_ids(vocabulary, special_tokens):
    """Validate tokens; return all tokens, dict str -> id, and the special ones, ordered by id."""
    if not isinstance(vocabulary, dict):
        raise InputError(
            f"`vocabulary` must be a dict of str to id, got {type(vocabulary).__name__}."
        )
    require_list("special_tokens", special_tokens)
    if not isinstance(special_tokens, dict):
        missing = [token for token in special_tokens if token not in vocabulary]
        if missing:
            raise InputError(f"`special_tokens`: {missing[0]!r} is not in `vocabulary`.")
        special_tokens = {token: vocabulary[token] for token in special_tokens}
    tokens = {**vocabulary, **special_tokens}
    owners = {}
    for token, index in tokens.items():
        if not isinstance(token, str) or not token or type(index) is not int:
            raise InputError(
                f"`vocabulary` must map str to int, got id {index!r} for token {token!r}."
            )
        if vocabulary.get(token, index) != index:
            raise InputError(
                f"`special_tokens`: {token!r} has id {index}, but id {vocabulary[token]} in "
                "`vocabulary`."
            )
        if owners.setdefault(index, token) != token:
            raise InputError(f"`vocabulary`: {owners[index]!r} and {token!r} both have id {index}.")
    for index in range(len(owners)):
        if index not in owners:
            raise InputError(
                f"`vocabulary`: no token has id {index}; {len(owners)} tokens must have the ids "
                f"0 to {len(owners) - 1}."
            )
    ordered = {owners[index]: index for index in range(len(owners))}
    return ordered, {t: i for t, i in ordered.items() if t in special_tokens}


def _checked_merges(merges, vocabulary):
    merges = list(merges)
    for index, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else ()
        if len(parts) != 2:
            raise InputError(f'`merges` {index} must be a str "left right", got {merge!r}.')
        for token in (*parts, "".join(parts)):
            if token not in vocabulary:
                raise InputError(
                    f"`merges` {index} ({merge!r}) uses {token!r}, which is not in `vocabulary`."
                )
    return merges
