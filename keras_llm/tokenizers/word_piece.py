"""Implement WordPiece tokenizers, as in BERT and its derivatives."""

import collections
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Self, cast

import tokenizers

from keras_llm.errors import InputError, require_list
from keras_llm.files import read_utf8
from keras_llm.json_files import check_arguments
from keras_llm.tokenizers.base import Tokenizer, checked_batch
from keras_llm.tokenizers.byte_pair import texts_of
from keras_llm.tokenizers.graph.word_piece import WordPieceGraph
from keras_llm.tokenizers.special_tokens import checked_flags
from keras_llm.types import JSON, PathLike, Tensor

_FILE = "vocab.txt"
_PAD, _UNK, _CLS, _SEP, _MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PREFIX = "##"


class WordPiece(Tokenizer):
    """A WordPiece tokenizer.

    Text is split at white space and punctuation, and each word is encoded by its longest pieces.
    Control characters are dropped, and a word that the pieces cannot represent becomes one unknown
    token. So `decode` returns the text as BERT sees it, not always the text that was encoded.

    Args:
        vocabulary: list of str, the pieces by id; one that continues a word starts with "##".
            "[UNK]" is required. "[PAD]", "[CLS]" (begin), "[SEP]" (end) and "[MASK]", as far as
            they are present, are special tokens together with "[UNK]".
        lowercase: bool. Whether to lowercase the text.
        strip_accents: bool. Whether to strip accents; None means the value of `lowercase`.
        split_chinese: bool. Whether each Chinese character is a word.
        max_word_length: int, characters; longer words are unknown.
        special_tokens: strs in `vocabulary`, additional special tokens that `parse_special`
            recognizes.
        lstrip, rstrip, single_word: strs, special tokens as in `BytePair`.

    Attributes:
        mask_id: int, the id of "[MASK]", or -1 if there is none.

    Raises:
        InputError: if an argument is invalid; the message names it.

    Example:
    >>> tok = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##want", "##ed"])
    >>> tok.encode("Unwanted running")
    [5, 6, 7, 1]
    >>> tok.decode([5, 6, 7, 1])
    'unwanted [UNK]'

    Reference:
        Devlin et al., 2019, "BERT"; Wu et al., 2016, "Google's Neural Machine Translation
        System", 4.1.
    """

    def __init__(
        self,
        vocabulary: Iterable[str],
        lowercase: bool = True,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
        max_word_length: int = 100,
        special_tokens: Sequence[str] = (),
        lstrip: Iterable[str] = (),
        rstrip: Iterable[str] = (),
        single_word: Iterable[str] = (),
    ) -> None:
        self.vocabulary = _checked(vocabulary)
        self.lowercase = bool(lowercase)
        self.strip_accents = strip_accents
        self.split_chinese = bool(split_chinese)
        if type(max_word_length) is not int or max_word_length < 1:
            raise InputError(f"`max_word_length` must be an int > 0, got {max_word_length!r}.")
        self.max_word_length = max_word_length
        self.vocabulary_size = len(self.vocabulary)
        ids = {piece: index for index, piece in enumerate(self.vocabulary)}
        require_list("special_tokens", special_tokens)
        for token in special_tokens:
            if token not in ids:
                raise InputError(f"`special_tokens`: {token!r} is not in `vocabulary`.")
        named = dict.fromkeys([*SPECIAL_TOKENS, *special_tokens])
        self.special_tokens = {token: ids[token] for token in named if token in ids}
        self.flags = checked_flags(
            self.special_tokens, lstrip=lstrip, rstrip=rstrip, single_word=single_word
        )
        self.mask_takes_space = _MASK in self.flags["lstrip"]
        self.unk_id = ids[_UNK]
        self.bos_id, self.eos_id, self.mask_id = (ids.get(t, -1) for t in (_CLS, _SEP, _MASK))
        self.pad_id = ids.get(_PAD, max(self.eos_id, 0))
        self.add_bos = self.bos_id >= 0

    @classmethod
    def train(
        cls,
        files_or_iterable: str | pathlib.Path | Iterable[str | pathlib.Path],
        vocabulary_size: int = 8000,
        lowercase: bool = True,
        special_tokens: Iterable[str] = (),
    ) -> Self:
        """Train a tokenizer.

        Args:
            files_or_iterable: a path (str or Path) or list of Paths of UTF-8 text files, or an
                iterable of str, one per text.
            vocabulary_size: int, the maximum number of pieces: the special tokens, the characters
                of the text (at most a quarter of the size, the most frequent ones; each at the
                start of a word, inside one, or both), and merged pieces. V.
            lowercase: bool. Whether to lowercase and strip accents.
            special_tokens: strs that follow "[PAD]", "[UNK]", "[CLS]", "[SEP]" and "[MASK]",
                which have the ids 0 to 4.

        Returns:
            A `WordPiece`. The same texts yield the same tokenizer.

        Raises:
            InputError: if there is no text, or `vocabulary_size` is too small.
        """
        require_list("special_tokens", special_tokens)
        special_tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *special_tokens]))
        least = len(special_tokens) + 64
        if vocabulary_size < least:
            raise InputError(f"`vocabulary_size` must be at least {least}, got {vocabulary_size}.")
        texts = list(texts_of("WordPiece.train", files_or_iterable))
        normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
        alphabet = _alphabet(map(normalizer.normalize_str, texts), vocabulary_size // 4)

        def learn(first, size):
            rust = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=_UNK))
            rust.normalizer = normalizer
            rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
            trainer = tokenizers.trainers.WordPieceTrainer(
                vocab_size=size,
                special_tokens=first,
                initial_alphabet=alphabet,
                limit_alphabet=len(alphabet),
                show_progress=False,
            )
            rust.train_from_iterator(texts, trainer)
            vocabulary = rust.get_vocab()
            return sorted(vocabulary, key=vocabulary.get)

        # The trainer sees the characters inside words in an order that varies between runs and
        # uses it to break ties. Collect them first and pass them in a fixed order.
        inside = sorted(piece for piece in learn([], 0) if piece.startswith(PREFIX))
        vocabulary = learn([*special_tokens, *inside], vocabulary_size)
        return cls(vocabulary, lowercase=lowercase, special_tokens=special_tokens)

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Encode a str as a list of token ids, without begin or end token.

        Args:
            text: str.
            parse_special: bool. Whether special tokens in the text become their ids; otherwise
                they are plain text.
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
        silent = (self.pad_id, self.bos_id, self.eos_id)
        ids = [i for i in ids if i not in silent]
        invalid = [i for i in ids if not 0 <= i < self.vocabulary_size]
        if invalid:
            raise InputError(f"`ids`: {invalid[0]} is not in 0 to {self.vocabulary_size - 1}.")
        pieces = [self.vocabulary[i] for i in ids]
        return self._plain.decoder.decode(pieces)

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

    def _is_partial(self, text: str) -> bool:
        return False

    def _save_files(self, folder: pathlib.Path) -> JSON:
        (folder / _FILE).write_bytes("".join(p + "\n" for p in self.vocabulary).encode())
        return {
            "lowercase": self.lowercase,
            "strip_accents": self.strip_accents,
            "split_chinese": self.split_chinese,
            "max_word_length": self.max_word_length,
            "special_tokens": list(self.special_tokens),
            **{name: self.flags[name] for name in ("lstrip", "rstrip", "single_word")},
        }

    @classmethod
    def _load_files(cls, folder: pathlib.Path, config: JSON) -> Self:
        options = {name: value for name, value in config.items() if name != "class"}
        check_arguments(cls, options, folder / "config.json")
        try:
            return cls(read_vocabulary(folder / _FILE), **options)
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
        # In the order of their ids, which the library assigns to tokens outside the model.
        tokens = sorted(self._special, key=lambda token: token.token_id)
        rust.add_special_tokens([token.in_rust() for token in tokens])
        return rust

    def _in_rust(self) -> tokenizers.Tokenizer:
        model = tokenizers.models.WordPiece(
            {piece: index for index, piece in enumerate(self.vocabulary[: self._num_pieces])},
            unk_token=_UNK,
            max_input_chars_per_word=self.max_word_length,
        )
        rust = tokenizers.Tokenizer(model)
        rust.normalizer = tokenizers.normalizers.BertNormalizer(
            lowercase=self.lowercase,
            strip_accents=self.strip_accents,
            handle_chinese_chars=self.split_chinese,
        )
        rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        rust.decoder = tokenizers.decoders.WordPiece(prefix=PREFIX)
        return rust

    @property
    def _num_pieces(self) -> int:
        """The number of pieces before special tokens at the end, which are no words of a text."""
        count = self.vocabulary_size
        while self.vocabulary[count - 1] in self.special_tokens and count - 1 != self.unk_id:
            count -= 1
        return count

    @functools.cached_property
    def _graph(self) -> WordPieceGraph:
        strips = self.lowercase if self.strip_accents is None else self.strip_accents
        return WordPieceGraph(
            (self.lowercase, bool(strips), self.split_chinese),
            self.vocabulary,
            _UNK,
            PREFIX,
            self.max_word_length,
            num_pieces=self._num_pieces,
            silent=[i for i in (self.pad_id, self.bos_id, self.eos_id) if i >= 0],
            decoder=self._plain.decoder,
        )


def _alphabet(texts, most):
    """Return the `most` most frequent characters of normalized texts, with ties in order."""
    characters = collections.Counter()
    for text in texts:
        characters.update(text)
    ordered = sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    return sorted(c for c, _ in ordered[:most] if not c.isspace())


def read_vocabulary(path: PathLike) -> list[str]:
    """Read the pieces of a vocab.txt, one per line."""
    lines = read_utf8(path).split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _checked(vocabulary):
    if isinstance(vocabulary, (str, dict)) or not hasattr(vocabulary, "__iter__"):
        raise InputError(f"`vocabulary` must be a list of pieces, got {type(vocabulary).__name__}.")
    vocabulary, seen = list(vocabulary), {}
    for index, piece in enumerate(vocabulary):
        if not isinstance(piece, str) or not piece or "\x00" in piece or "\n" in piece:
            raise InputError(
                f"`vocabulary` {index} must be a non-empty str without U+0000 and line breaks, got "
                f"{piece!r}."
            )
        if seen.setdefault(piece, index) != index:
            raise InputError(f"`vocabulary`: {piece!r} has the ids {seen[piece]} and {index}.")
    if _UNK not in seen:
        raise InputError(f'`vocabulary` with {len(vocabulary)} pieces has no "{_UNK}".')
    return vocabulary
