"""Define the interface of all tokenizers and load saved tokenizers."""

import abc
import base64
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Self

from keras_llm.errors import InputError, require_list
from keras_llm.json_files import read_json
from keras_llm.tokenizers.graph.special_tokens import encode_with_special
from keras_llm.tokenizers.special_tokens import FLAGS, SpecialToken, special_tokens_of
from keras_llm.types import JSON, PathLike, Tensor

_CLASSES: dict[str, type["Tokenizer"]] = {}
_CONFIG = "config.json"
MASKS = ("<mask>", "[MASK]")  # names of mask tokens


class Tokenizer(abc.ABC):
    """A tokenizer that runs in Python and inside a TensorFlow graph with the same ids.

    Attributes:
        vocabulary_size: int. V.
        pad_id, bos_id, eos_id, unk_id: ints; the ids of the padding, begin, end and unknown
            tokens. -1 if there is none, except that padding always has an id: by default that of
            the end token.
        mask_id: int. The id of the mask token; -1 if there is none.
        mask_takes_space: bool. Whether the mask token includes the white space before it.
        special_tokens: dict str -> id. The tokens that `parse_special` recognizes in a text.
        flags: dict from "lstrip", "rstrip", "single_word" and "normalized" to lists of the special
            tokens that have this flag of `tokenizers.AddedToken`.
        add_bos: bool. Whether a text passed to a model starts with the begin token.
    """

    add_bos = True
    mask_id = -1
    mask_takes_space = False
    pad_id: int
    bos_id: int
    eos_id: int
    special_tokens: dict[str, int]
    flags: dict[str, list[str]] = {name: [] for name in FLAGS}  # noqa: RUF012

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CLASSES[cls.__name__] = cls

    @abc.abstractmethod
    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Encode a str as a list of token ids, without begin or end token."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids to a str, skipping padding, begin and end tokens."""

    @abc.abstractmethod
    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Encode a list of str as a list of lists of token ids, on all cores.

        Raises:
            InputError: if `texts` is not an iterable of str.
        """

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a str and return the character span of each token.

        Returns:
            A list of ints, the ids of `encode`, and a list of pairs (start, end) of ints, in
            characters, so that a token corresponds to `text[start:end]`. Starts and ends never
            decrease. A token that is part of a character spans the whole character, or is empty
            just before it.
        """

    @abc.abstractmethod
    def token(self, index: int) -> str:
        """Return the token with an id as written in the vocabulary; "" for an id below 0."""

    @abc.abstractmethod
    def tokenize(self, strings: Tensor) -> Tensor:
        """Encode a string tensor (B,) in a graph as an int32 `tf.RaggedTensor` (B, None)."""

    @abc.abstractmethod
    def tokenize_with_offsets(self, strings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a string tensor (B,) of UTF-8 in a graph, with character spans.

        Returns the ids of `tokenize` and the starts and ends of `encode_with_offsets`, int32
        `tf.RaggedTensor`s (B, None).
        """

    @abc.abstractmethod
    def detokenize(self, ids: Tensor) -> Tensor:
        """Decode an int tensor (B, T) or ragged (B, None) in a graph to a string tensor (B,)."""

    @abc.abstractmethod
    def graph_resources(self) -> list[Any]:
        """Return the TensorFlow objects that an exported graph must track."""

    @abc.abstractmethod
    def _is_partial(self, text: str) -> bool:
        """Return whether the next token may still change the end of a decoded str."""

    @abc.abstractmethod
    def _save_files(self, folder: pathlib.Path) -> JSON:
        """Write the files that `_load_files` reads; return the entries for config.json."""

    @classmethod
    @abc.abstractmethod
    def _load_files(cls, folder: pathlib.Path, config: JSON) -> Self:
        """Restore the tokenizer that `_save_files` wrote."""

    def tokenize_prompt(self, strings: Tensor, parse_special: bool = False) -> Tensor:
        """Run `encode_prompt` in a graph on a string tensor (B,) of UTF-8.

        Returns an int32 `tf.RaggedTensor` (B, None).
        """
        import tensorflow as tf

        if parse_special:
            return encode_with_special(
                strings, self._special, self._tokenize_part, self._normalize_in_graph
            )
        ids = self.tokenize(strings)
        if not self.add_bos:
            return ids
        return tf.concat([tf.fill((tf.size(strings), 1), self.bos_id), ids], axis=1)

    @property
    def _special(self) -> list[SpecialToken]:
        return special_tokens_of(self.special_tokens, self.flags)

    def _tokenize_part(self, strings: Tensor, is_first: Tensor) -> Tensor:
        """Run `tokenize` on normalized strings (U,), the texts between special tokens.

        Args:
            is_first: bool (U,). Whether a string is the beginning of its text.
        """
        return self.tokenize(strings)

    def _normalize_in_graph(self, strings: Tensor) -> Tensor:
        """Normalize strings (U,), the texts between special tokens."""
        return strings

    def encode_prompt(self, text: str, parse_special: bool = False) -> list[int]:
        """Encode a str as the token ids of a prompt, a list of ints.

        They start with the begin token if `add_bos`, but not with `parse_special`, where the text
        contains its special tokens, as rendered chats do.
        """
        begin = [self.bos_id] if self.add_bos and not parse_special else []
        return [*begin, *self.encode(text, parse_special)]

    def decode_continuation(self, ids: Iterable[int], previous_id: int) -> str:
        """Decode token ids that follow another token.

        A token may begin with a space that `decode` removes from the first token of a text. Here
        it is kept, unless the previous token has no text, such as a begin token.

        Args:
            ids: iterable of int.
            previous_id: int, the token before `ids`, such as the last token of a prompt.

        Returns:
            The text that `ids` add, a str.
        """
        previous = self.decode([previous_id])
        return self.decode([previous_id, *ids])[len(previous) :]

    def has_text(self, index: int) -> bool:
        """Return whether a token has text, unlike a begin token."""
        special = {self.pad_id, self.bos_id, self.eos_id, *self.special_tokens.values()}
        return index >= 0 and (index not in special or bool(self.decode([index])))

    def encode_continuation(self, text: str) -> list[int]:
        """Encode a str that continues a text as token ids that `decode_continuation` decodes."""
        return self.encode(text)

    def detokenize_continuation(self, ids: Tensor, previous_ids: Tensor) -> Tensor:
        """Run `decode_continuation` in a graph.

        Args:
            ids: int `tf.RaggedTensor` (B, None).
            previous_ids: int32 (B,).

        Returns:
            String tensor (B,).
        """
        import tensorflow as tf

        previous_ids = tf.expand_dims(previous_ids, 1)
        previous = self.detokenize(previous_ids)
        texts = self.detokenize(tf.concat([tf.cast(previous_ids, ids.dtype), ids], axis=1))
        begin, end = (tf.strings.length(text, "UTF8_CHAR") for text in (previous, texts))
        return tf.strings.substr(texts, tf.minimum(begin, end), end, "UTF8_CHAR")

    def decode_stream(self, ids: Iterable[int], previous_id: int | None = None) -> Iterator[str]:
        """Decode token ids incrementally.

        Args:
            ids: iterable of int.
            previous_id: int, the token before `ids` as in `decode_continuation`, or None if they
                begin a text.

        Yields:
            Non-empty pieces of text that never end inside a character. Joined, they equal
            `decode` or `decode_continuation` of all ids.
        """
        ids_so_far = [] if previous_id is None else [previous_id]
        emitted = self.decode(ids_so_far)
        for token in ids:
            ids_so_far.append(token)
            text = self.decode(ids_so_far)
            if len(text) > len(emitted) and not self._is_partial(text):
                yield text[len(emitted) :]
                emitted = text
        rest = self.decode(ids_so_far)[len(emitted) :]
        if rest:
            yield rest

    def as_layer(self, **options: Any) -> Any:
        """Return a Keras layer that encodes strings, like the tokenizers of KerasHub.

        Args:
            **options: the arguments of `keras_layer.TokenizerLayer` after `tokenizer`:
                `sequence_length`, `special_tokens_in_strings`, `add_bos`, `add_eos` and `dtype`.
        """
        from keras_llm.tokenizers.keras_layer import TokenizerLayer

        return TokenizerLayer(self, **options)

    def get_config(self) -> JSON:
        """Return the whole tokenizer as a dict of JSON values."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            config = {"class": type(self).__name__, **self._save_files(path)}
            files = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
        return {**config, "files": {k: base64.b64encode(v).decode() for k, v in files.items()}}

    @staticmethod
    def from_config(config: JSON) -> "Tokenizer":
        """Restore a tokenizer of any class from the result of `get_config`.

        Raises:
            InputError: if `config` does not describe a tokenizer.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            try:
                for name, text in config["files"].items():
                    (path / pathlib.PurePath(name).name).write_bytes(base64.b64decode(text))
                rest = {name: value for name, value in config.items() if name != "files"}
                (path / _CONFIG).write_text(json.dumps(rest), "utf-8")
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise InputError(f"`config` does not describe a tokenizer: {error!r}.") from None
            return load(path)

    def save(self, folder: PathLike) -> None:
        """Write the tokenizer into a folder, which is created if necessary."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"class": type(self).__name__, **self._save_files(folder)}
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def checked_batch(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list.

    Raises:
        InputError: if `texts` is not an iterable of str.
    """
    require_list("texts", texts)
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"`texts` {index} must be a str, got {type(text).__name__}.")
    return texts


def load(folder: PathLike) -> Tokenizer:
    """Load the tokenizer that `save` wrote.

    Args:
        folder: str or path.

    Returns:
        A `Tokenizer`.

    Raises:
        InputError: if the folder has no tokenizer, or its files are invalid.
    """
    folder = pathlib.Path(folder)
    path = folder / _CONFIG
    if not path.is_file():
        raise InputError(f"{folder} has no tokenizer ({path} is missing).")
    config = read_json(path)
    name = config.get("class")
    if not isinstance(name, str) or name not in _CLASSES:
        raise InputError(
            f"{path} does not describe a tokenizer: `class` must be one of {', '.join(_CLASSES)}, "
            f"got {name!r}."
        )
    return _CLASSES[name]._load_files(folder, config)
