"""What every tokenizer can do, and how one is found again on disk."""

import abc
import json
import pathlib

from keras_llm.errors import InputError
from keras_llm.tokenizers.graph.ragged import encode_with_special

_CLASSES = {}
MASKS = ("<mask>", "[MASK]")  # how mask tokens are called


class Tokenizer(abc.ABC):
    """Text to token ids and back, in Python and inside a TensorFlow graph with the same ids.

    Attributes:
        vocabulary_size: int. V.
        pad_id, bos_id, eos_id, unk_id: ints; the ids of padding, begin of text, end of text
            and unknown. -1 where there is none, except that padding always has an id: without
            one of its own, that of the end token.
        mask_id: int. The id of the token that stands for a word to be guessed; -1 without one.
        mask_takes_space: bool. Whether the white space before a mask token belongs to it.
        special_tokens: dict str -> id, what `parse_special` finds in a text.
        add_bos: bool. Whether a text given to a model begins with the begin token.
    """

    add_bos = True
    mask_id = -1
    mask_takes_space = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _CLASSES[cls.__name__] = cls

    @abc.abstractmethod
    def encode(self, text, parse_special=False):
        """A str -> its token ids, a list of ints. No begin or end token is added."""

    @abc.abstractmethod
    def decode(self, ids):
        """Token ids -> a str. Padding, begin and end tokens give nothing."""

    @abc.abstractmethod
    def encode_batch(self, texts):
        """A list of str -> a list of lists of ints, on all cores."""

    @abc.abstractmethod
    def encode_with_offsets(self, text):
        """A str -> its token ids, as `encode` gives them, and where each stands in the text.

        Returns:
            A list of ints, and a list of pairs (start, end) of ints, in characters, so that a
            token is of `text[start:end]`. Neither begins before the one before it. A token of
            a piece of a character stands at the whole character, or at nothing just before it.
        """

    @abc.abstractmethod
    def token(self, index):
        """A token id -> the token as the vocabulary spells it, a str; "" for an id below 0."""

    @abc.abstractmethod
    def tokenize(self, strings):
        """In a graph: string tensor (B,) -> int32 `tf.RaggedTensor` (B, None)."""

    @abc.abstractmethod
    def tokenize_with_offsets(self, strings):
        """In a graph: string tensor (B,) of UTF-8 -> what `tokenize` gives, and the starts and
        the ends that `encode_with_offsets` gives, int32 `tf.RaggedTensor`s (B, None)."""

    @abc.abstractmethod
    def detokenize(self, ids):
        """In a graph: int tensor (B, T) or ragged (B, None) -> string tensor (B,)."""

    @abc.abstractmethod
    def graph_resources(self):
        """The TensorFlow objects that an exported graph must track."""

    @abc.abstractmethod
    def _is_partial(self, text):
        """Whether the end of a decoded str may still change with the next token."""

    @abc.abstractmethod
    def _save_files(self, folder):
        """Write the files that `_load_files` needs; return what goes into config.json."""

    @classmethod
    @abc.abstractmethod
    def _load_files(cls, folder, config):
        """The tokenizer that `_save_files` wrote."""

    def tokenize_prompt(self, strings, parse_special=False):
        """In a graph: string tensor (B,) of UTF-8 -> what `encode_prompt` gives, int32
        `tf.RaggedTensor` (B, None)."""
        import tensorflow as tf

        if parse_special:
            return encode_with_special(strings, self.special_tokens, self.tokenize)
        ids = self.tokenize(strings)
        if not self.add_bos:
            return ids
        return tf.concat([tf.fill((tf.size(strings), 1), self.bos_id), ids], axis=1)

    def encode_prompt(self, text, parse_special=False):
        """A str -> the token ids that a model continues, a list of ints.

        They begin with the begin token if `add_bos`; not if `parse_special`, where the text
        spells out the special tokens that it wants, as rendered chats do.
        """
        begin = [self.bos_id] if self.add_bos and not parse_special else []
        return [*begin, *self.encode(text, parse_special)]

    def decode_stream(self, ids):
        """Decode token ids as they come.

        Args:
            ids: iterable of int.

        Yields:
            Pieces of text, none empty, none ending inside a character; joined they are
            `decode` of all ids.
        """
        shown, so_far = "", []
        for token in ids:
            so_far.append(token)
            text = self.decode(so_far)
            if len(text) > len(shown) and not self._is_partial(text):
                yield text[len(shown) :]
                shown = text
        rest = self.decode(so_far)[len(shown) :]
        if rest:
            yield rest

    def save(self, folder):
        """Write the tokenizer into a folder, made if need be."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"class": type(self).__name__, **self._save_files(folder)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def load(folder):
    """The tokenizer that `save` wrote.

    Args:
        folder: str or path.

    Returns:
        A `Tokenizer`.

    Raises:
        InputError: if there is no tokenizer, or it cannot be read.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no tokenizer ({path} is missing).")
    try:
        config = json.loads(path.read_text("utf-8"))
        tokenizer_class = _CLASSES[config["class"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe a tokenizer: {error!r}.") from None
    return tokenizer_class._load_files(folder, config)
