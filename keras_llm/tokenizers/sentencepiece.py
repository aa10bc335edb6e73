"""Train and run SentencePiece tokenizers, with an exact round trip for models trained here."""

import collections
import functools
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2

from keras_llm.errors import InputError, optional_packages
from keras_llm.files import read_utf8
from keras_llm.json_files import check_arguments
from keras_llm.tokenizers.base import MASKS, Tokenizer
from keras_llm.tokenizers.offsets import CharacterOffsets
from keras_llm.types import JSON, Tensor

# SentencePiece writes a space as U+2581 and decodes a U+2581 of the text as a space. An escape
# distinguishes them: in encoded text, every _ESCAPE is followed by "a" (an escape character of the
# text) or "b" (a U+2581 of the text).
_ESCAPE = "\ue000"
ESCAPES = ((_ESCAPE, _ESCAPE + "a"), ("\u2581", _ESCAPE + "b"))
_MODEL_FILE = "sentencepiece.model"
_LONGEST_SENTENCE = 4096  # characters; the trainer limits the length of sentences


class SentencePiece(Tokenizer):
    """A SentencePiece tokenizer with a unigram or BPE model.

    Models from `train` neither normalize text nor add spaces, and encode what no piece covers as
    bytes, so `decode(encode(text)) == text` for any Unicode text. Other models yield the ids and
    texts of the `sentencepiece` library.

    Args:
        model: bytes, a serialized SentencePiece model.
        escape: bool. Whether to distinguish a space from the U+2581 that SentencePiece writes
            for it, as models from `train` do. Use False for all other models.
        add_bos: bool. Whether a text passed to the model starts with the begin token.

    Raises:
        InputError: if `model` is not a SentencePiece model.

    Reference:
        Kudo and Richardson, 2018, "SentencePiece".
    """

    def __init__(self, model: bytes, escape: bool = True, add_bos: bool = True) -> None:
        self.model = model
        self.escape = bool(escape)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError(f"not a SentencePiece model: {error}") from None
        if not model:  # the library takes it as no model
            raise InputError("not a SentencePiece model: it is empty.")
        self.vocabulary_size = self._processor.get_piece_size()
        self.bos_id = self._processor.bos_id()
        self.eos_id = self._processor.eos_id()
        self.unk_id = self._processor.unk_id()
        self.pad_id = self._processor.pad_id()
        if self.pad_id < 0:
            self.pad_id = max(self.eos_id, 0)
        self.add_bos = bool(add_bos) and self.bos_id >= 0
        masks = (self._processor.piece_to_id(token) for token in MASKS)
        self.mask_id = next((index for index in masks if index != self.unk_id), -1)

    @classmethod
    def train(
        cls,
        files_or_iterable: str | pathlib.Path | Iterable[str | pathlib.Path],
        vocabulary_size: int = 8000,
        model_type: str = "unigram",
    ) -> Self:
        """Train a model.

        Args:
            files_or_iterable: a path (str or Path) or list of Paths of UTF-8 text files, or an
                iterable of str, one per text.
            vocabulary_size: int > 260, including 256 bytes and 4 special tokens. V. If single
                characters would take more than half of the rest, the rarest, up to 2 % of the
                text, are encoded as bytes instead.
            model_type: "unigram" or "bpe".

        Returns:
            A `SentencePiece`. The same texts yield the same model.

        Raises:
            InputError: if there is no text, or `vocabulary_size` does not fit the text.
        """
        if model_type not in ("unigram", "bpe"):
            raise InputError(f'`model_type` must be "unigram" or "bpe", got {model_type!r}.')
        if vocabulary_size < 261:
            raise InputError(f"`vocabulary_size` must be at least 261, got {vocabulary_size}.")
        sentences = list(_sentences(files_or_iterable))
        characters: collections.Counter[str] = collections.Counter()
        for sentence in sentences:
            characters.update(sentence)
        if not characters:
            raise InputError("SentencePiece.train: `files_or_iterable` has no text.")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                vocab_size=vocabulary_size,
                model_type=model_type,
                byte_fallback=True,
                character_coverage=_coverage(characters, (vocabulary_size - 260) // 2),
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                max_sentence_length=8 * _LONGEST_SENTENCE,
                num_threads=os.cpu_count() or 1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).split("] ", 1)[-1].strip()
            raise InputError(
                f"SentencePiece.train: `vocabulary_size`={vocabulary_size} does not fit the "
                f"text: {reason}"
            ) from None
        return cls(model.getvalue())

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Encode a str as a list of token ids, without begin or end token.

        Args:
            text: str.
            parse_special: bool. Whether control and unknown pieces in the text, such as `</s>`,
                become their ids; the text between them is then encoded as separate texts.
                Otherwise they are plain text. Never use True for text that a user typed.
        """
        if not parse_special:
            return self._processor.encode(self._escaped(text))
        ids = []
        for index, part in enumerate(self._special_pieces.split(text)):
            if index % 2:
                ids.append(self._processor.piece_to_id(part))
            elif part:
                ids += self._processor.encode(self._escaped(part))
        return ids

    def encode_batch(self, texts: Iterable[str], parse_special: bool = False) -> list[list[int]]:
        if parse_special:
            return [self.encode(text, parse_special=True) for text in texts]
        return self._processor.encode([self._escaped(text) for text in texts], num_threads=-1)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        escaped = self._escaped(text)
        pieces = sentencepiece_pb2.SentencePieceText.FromString(
            self._processor.encode(escaped, out_type="serialized_proto")
        ).pieces
        place = _characters(text, escaped)
        return [p.id for p in pieces], [(place[p.begin], place[p.end]) for p in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        text = self._processor.decode([int(i) for i in ids])
        return _unescape(text) if self.escape else text

    def token(self, index: int) -> str:
        return self._processor.id_to_piece(index) if index >= 0 else ""

    def tokenize(self, strings: Tensor) -> Tensor:
        return self._graph.tokenize(self._escaped_in_graph(strings))

    def tokenize_with_offsets(self, strings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        strings = self._escaped_in_graph(strings)
        ids, starts, ends = self._graph.tokenize_with_offsets(strings)
        places = CharacterOffsets(strings, _follows_escape if self.escape else None)
        return ids, places.before(starts), places.before(ends)

    def detokenize(self, ids: Tensor) -> Tensor:
        import tensorflow as tf

        strings = self._graph_decoder.detokenize(tf.cast(ids, tf.int32))
        if self._keeps_leading_spaces:
            strings = tf.strings.regex_replace(strings, "^ ", "")
        if self.escape:
            for character, escaped in reversed(ESCAPES):
                strings = tf.strings.regex_replace(strings, escaped, character)
        return strings

    def graph_resources(self) -> list[Any]:
        return [self._graph, self._graph_decoder]

    @functools.cached_property
    def _graph(self):
        return _in_graph(self.model)

    @functools.cached_property
    def _graph_decoder(self):
        if not self._keeps_leading_spaces:
            return self._graph
        # TensorFlow Text would remove all leading spaces instead of the one that encoding adds.
        model = sentencepiece_model_pb2.ModelProto.FromString(self.model)
        model.normalizer_spec.add_dummy_prefix = False
        return _in_graph(model.SerializeToString())

    @functools.cached_property
    def _keeps_leading_spaces(self):
        spec = sentencepiece_model_pb2.ModelProto.FromString(self.model).normalizer_spec
        return spec.add_dummy_prefix and not spec.remove_extra_whitespaces

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """The control and unknown pieces, dict str -> id."""
        processor = self._processor
        return {
            processor.id_to_piece(index): index
            for index in range(self.vocabulary_size)
            if processor.is_control(index) or processor.is_unknown(index)
        }

    @functools.cached_property
    def _special_pieces(self):
        pieces = sorted(self.special_tokens, key=len, reverse=True)
        # Without special pieces, match nothing: (?!) always fails.
        return re.compile("(" + ("|".join(map(re.escape, pieces)) or "(?!)") + ")")

    def _escaped(self, text: str) -> str:
        return _escape(text) if self.escape else text

    def _escaped_in_graph(self, strings):
        import tensorflow as tf

        if self.escape:
            for character, escaped in ESCAPES:
                strings = tf.strings.regex_replace(strings, character, escaped)
        return strings

    def _is_partial(self, text: str) -> bool:
        return text.endswith(("\ufffd", _ESCAPE))

    def _save_files(self, folder: pathlib.Path) -> JSON:
        (folder / _MODEL_FILE).write_bytes(self.model)
        return {"escape": self.escape, "add_bos": self.add_bos}

    @classmethod
    def _load_files(cls, folder: pathlib.Path, config: JSON) -> Self:
        path = folder / _MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path} is missing.")
        options = {name: value for name, value in config.items() if name != "class"}
        check_arguments(cls, options, folder / "config.json")
        try:
            return cls(path.read_bytes(), **options)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


@functools.cache
def _in_graph(model):
    import tensorflow as tf

    with optional_packages("a SentencePiece graph"):
        import tensorflow_text
        from tensorflow_text.python.ops import sentencepiece_tokenizer

    create = sentencepiece_tokenizer.gen_sentencepiece_tokenizer.sentencepiece_op
    name = "sentencepiece_" + hashlib.sha256(model).hexdigest()

    class Model(tf.saved_model.experimental.TrackableResource):
        # Without a unique name, `keras.utils.clear_session` would delete the resource with its
        # kernel, and two models in a loaded SavedModel would share one resource.
        def _create_resource(self):
            return create(model=model, shared_name=name)

    with tf.init_scope():
        tokenizer = tensorflow_text.SentencepieceTokenizer(model, out_type=tf.int32)
        tokenizer._model_resource = Model()
        _ = tokenizer._model_resource.resource_handle  # create it outside of graphs that use it
    return tokenizer


def _escape(text):
    for character, escaped in ESCAPES:
        text = text.replace(character, escaped)
    return text


def _unescape(text):
    for character, escaped in reversed(ESCAPES):
        text = text.replace(escaped, character)
    return text


def _characters(text, escaped):
    """Count the characters of the original text that start before each byte of the escaped text.

    The last entry is for the end of the text.
    """
    begins = np.frombuffer(escaped.encode(), "uint8") & 0xC0 != 0x80
    if escaped != text:
        # Of the two characters of an escape, the second is an "a" or a "b" after _ESCAPE.
        characters = np.array([ord(character) for character in escaped])
        second = np.concatenate([[False], characters[:-1] == ord(_ESCAPE)])
        begins[begins] = ~second
    return [0, *np.cumsum(begins).tolist()]


def _follows_escape(flat):
    """Return whether each byte, int32 (N,), is the second character of an escape, bool (N,)."""
    import tensorflow as tf

    padded = tf.concat([[0, 0, 0], flat], axis=0)
    before = [padded[i : tf.size(padded) - 3 + i] for i in range(3)]
    matches = [b == byte for b, byte in zip(before, _ESCAPE.encode(), strict=True)]
    return matches[0] & matches[1] & matches[2]


def _sentences(source):
    """Yield the lines of the source, with long lines split."""
    if isinstance(source, (str, pathlib.Path)):
        source = [pathlib.Path(source)]
    for item in source:
        text = read_utf8(item) if isinstance(item, pathlib.Path) else item
        for line in _escape(text).split("\n"):
            for begin in range(0, len(line), _LONGEST_SENTENCE):
                yield line[begin : begin + _LONGEST_SENTENCE]


def _coverage(characters, most):
    """Return the share of the text that its `most` most frequent characters cover.

    The result is within the bounds of SentencePiece.
    """
    covered = sum(count for _, count in characters.most_common(max(1, most)))
    return min(max(0.98, covered / characters.total()), 0.9995)
