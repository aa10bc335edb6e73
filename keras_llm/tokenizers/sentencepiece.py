"""Train and run SentencePiece tokenizers, with an exact round trip for models trained here."""

import collections
import functools
import io
import os
import pathlib
from collections.abc import Iterable
from typing import Any, Self

import sentencepiece
from sentencepiece import sentencepiece_pb2

from keras_llm.errors import InputError, require_list
from keras_llm.files import read_utf8
from keras_llm.json_files import check_arguments
from keras_llm.tokenizers import escapes, sentencepiece_model
from keras_llm.tokenizers.base import MASKS, Tokenizer, checked_batch
from keras_llm.tokenizers.graph.ragged import repeat
from keras_llm.tokenizers.graph.sentencepiece import SentencePieceGraph
from keras_llm.tokenizers.mask_filling import WHITE_SPACE
from keras_llm.tokenizers.offsets import CharacterOffsets
from keras_llm.tokenizers.special_tokens import Splitter, checked_flags
from keras_llm.types import JSON, Tensor

_SPACE = "\u2581"
_MODEL_FILE = "sentencepiece.model"
PREFIXES = (None, "always", "first", "never", "words")
_LONGEST_SENTENCE = 4096  # characters; the trainer limits the length of sentences


class SentencePiece(Tokenizer):
    """A SentencePiece tokenizer with a unigram or BPE model.

    Models from `train` neither normalize text nor add spaces, and encode what no piece covers as
    bytes, so `decode(encode(text)) == text` for any Unicode text. Other models yield the ids and
    texts of the `sentencepiece` library, except among nearly equally likely segmentations of a
    unigram model (see `sentencepiece_model.exact`). In a graph, a unigram model can also choose
    another of them than in Python after about 6 KB without a space, tab or line.

    Args:
        model: bytes, a serialized SentencePiece model.
        escape: bool. Whether to distinguish a space from the U+2581 that SentencePiece writes
            for it, as models from `train` do. Use False for all other models.
        add_bos: bool. Whether a text passed to the model starts with the begin token.
        prefix: None if the model decides whether a space is put before a text. Otherwise a rule of
            Hugging Face's `Metaspace`: "always" puts a space before each text between special
            tokens that does not start with one, "first" only before a text that starts with no
            special token, "never" before none, and "words" before each word, as in T5.
        strip: bool. Whether `decode` removes one space from the beginning of a text. Defaults to
            whether `encode` puts one there.
        special_tokens: strs, the pieces that `parse_special` recognizes. Defaults to the control
            and unknown pieces.
        lstrip, rstrip, single_word, normalized: strs, special tokens as in `BytePair`. Normalized
            text has U+2581 for a space, and the space that the model puts before it.

    Raises:
        InputError: if `model` is not a SentencePiece model, or an argument is invalid.

    Reference:
        Kudo and Richardson, 2018, "SentencePiece".
    """

    def __init__(
        self,
        model: bytes,
        escape: bool = True,
        add_bos: bool = True,
        prefix: str | None = None,
        strip: bool | None = None,
        special_tokens: Iterable[str] | None = None,
        lstrip: Iterable[str] = (),
        rstrip: Iterable[str] = (),
        single_word: Iterable[str] = (),
        normalized: Iterable[str] = (),
    ) -> None:
        self.model = model
        self.escape = bool(escape)
        normalized = list(normalized)
        if prefix not in PREFIXES:
            raise InputError(f"`prefix` must be one of {PREFIXES}, got {prefix!r}.")
        self.prefix = prefix
        try:
            exact, facts = sentencepiece_model.exact(model), sentencepiece_model.facts(model)
            self._facts = facts
            # SentencePiece puts a space before every text and removes it from every decoded text.
            # For other rules, this class does so. A normalized special token may include the space.
            own = prefix in ("always", "first", "never") or bool(normalized) or strip is not None
            own = own and not facts.remove_extra_whitespaces
            self._adds_space = own and prefix is None and facts.add_dummy_prefix
            self._removes_space = own and (prefix in ("always", "first") or self._adds_space)
            if own and strip is not None:
                self._removes_space = bool(strip)
            self.strips_space = self._removes_space or (not own and facts.removes_space)
            self._decodes_apart = not own and facts.add_dummy_prefix
            self._decodes_apart &= not facts.remove_extra_whitespaces
            self.strip = strip
            self._exact = sentencepiece_model.without_prefix(exact) if own else exact
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._exact)
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
        self.special_tokens = self._checked_special(special_tokens)
        self.flags = checked_flags(
            self.special_tokens,
            lstrip=lstrip,
            rstrip=rstrip,
            single_word=single_word,
            normalized=normalized,
        )
        self.mask_takes_space = self.token(self.mask_id) in self.flags["lstrip"]

    @classmethod
    def train(
        cls,
        files_or_iterable: str | pathlib.Path | Iterable[str | pathlib.Path],
        vocabulary_size: int = 8000,
        model_type: str = "unigram",
        shrink: bool = False,
    ) -> Self:
        """Train a model.

        Args:
            files_or_iterable: a path (str or Path) or list of Paths of UTF-8 text files, or an
                iterable of str, one per text.
            vocabulary_size: int > 260, including 256 bytes and 4 special tokens. V. If single
                characters would take more than half of the rest, the rarest, up to 2 % of the
                text, are encoded as bytes instead.
            model_type: "unigram" or "bpe".
            shrink: bool. Whether a text with too few different pieces gets a smaller vocabulary
                instead of an error.

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
        coverage = sentencepiece_model.coverage(characters, (vocabulary_size - 260) // 2)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                vocab_size=vocabulary_size,
                hard_vocab_limit=not shrink,
                model_type=model_type,
                byte_fallback=True,
                character_coverage=coverage,
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
        return cls(sentencepiece_model.exact(model.getvalue()))

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Encode a str as a list of token ids, without begin or end token.

        Args:
            text: str.
            parse_special: bool. Whether control and unknown pieces in the text, such as `</s>`,
                become their ids; the text between them is then encoded as separate texts.
                Otherwise they are plain text. Never use True for text that a user typed.
        """
        if not parse_special:
            return self._processor.encode(self._prefixed(self._normalized(text)))
        ids = []
        for token, part, start in self._splitters[0].split(text):
            if token >= 0:
                ids.append(token)
                continue
            for finer, text_part, begin in self._splitters[1].split(self._normalized(part)):
                if finer >= 0:
                    ids.append(finer)
                else:
                    is_first = start == 0 and begin == 0
                    ids += self._processor.encode(self._prefixed(text_part, is_first))
        return ids

    def encode_batch(self, texts: Iterable[str], parse_special: bool = False) -> list[list[int]]:
        texts = checked_batch(texts)
        if parse_special:
            return [self.encode(text, parse_special=True) for text in texts]
        prefixed = [self._prefixed(self._normalized(text)) for text in texts]
        return self._processor.encode(prefixed, num_threads=-1)

    def encode_continuation(self, text: str) -> list[int]:
        if self._facts.remove_extra_whitespaces and text.startswith(" "):
            return self.encode(text)
        return self._without_prefix.encode(escapes.escape(text) if self.escape else text)

    @functools.cached_property
    def _without_prefix(self):
        """The processor that puts no space before a text."""
        if not self._facts.add_dummy_prefix:
            return self._processor
        model = sentencepiece_model.without_prefix(self._exact)
        return sentencepiece.SentencePieceProcessor(model_proto=model)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        normalized = self._normalized(text)
        prefixed = self._prefixed(normalized)
        pieces = sentencepiece_pb2.SentencePieceText.FromString(
            self._processor.encode(prefixed, out_type="serialized_proto")
        ).pieces
        place = escapes.character_counts(prefixed, self.escape)
        added = len(prefixed) - len(normalized) + int(self._adds_space and bool(text))
        place = [max(0, index - added) for index in place] if added else place
        return [p.id for p in pieces], [(place[p.begin], place[p.end]) for p in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        text = self._processor.decode([int(i) for i in ids])
        if self._removes_space:
            text = text.removeprefix(" ")
        return escapes.unescape(text) if self.escape else text

    def token(self, index: int) -> str:
        return self._processor.id_to_piece(index) if index >= 0 else ""

    def tokenize(self, strings: Tensor) -> Tensor:
        return self._graph.tokenize(self._prefixed_in_graph(self._normalize_in_graph(strings)))

    def tokenize_with_offsets(self, strings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        import tensorflow as tf

        strings = tf.convert_to_tensor(strings, tf.string)
        normalized = self._normalize_in_graph(strings)
        prefixed = self._prefixed_in_graph(normalized)
        ids, *offsets = self._graph.tokenize_with_offsets(prefixed)
        places = CharacterOffsets(prefixed, escapes.is_second if self.escape else None)
        starts, ends = (places.before(offset) for offset in offsets)
        if prefixed is normalized and not self._adds_space:
            return ids, starts, ends
        added = tf.strings.length(prefixed) > tf.strings.length(normalized)
        if self._adds_space:
            added = strings != ""
        added = repeat(tf.cast(added, tf.int32), ids.row_lengths())
        starts, ends = (o.with_values(tf.maximum(o.values - added, 0)) for o in (starts, ends))
        return ids, starts, ends

    def _tokenize_part(self, strings: Tensor, is_first: Tensor) -> Tensor:
        return self._graph.tokenize(self._prefixed_in_graph(strings, is_first))

    def detokenize(self, ids: Tensor) -> Tensor:
        import tensorflow as tf

        strings = self._graph_decoder.detokenize(tf.cast(ids, tf.int32))
        if self._decodes_apart or self._removes_space:
            strings = tf.strings.regex_replace(strings, "^ ", "")
        return escapes.unescape_in_graph(strings) if self.escape else strings

    def graph_resources(self) -> list[Any]:
        return [*self._graph.resources, *self._graph_decoder.resources]

    @functools.cached_property
    def _graph(self):
        return SentencePieceGraph(self._exact)

    @functools.cached_property
    def _graph_decoder(self):
        if not self._decodes_apart:
            return self._graph
        # TensorFlow Text would remove all leading spaces instead of the one that encoding adds.
        return SentencePieceGraph(sentencepiece_model.without_prefix(self._exact))

    def _checked_special(self, names):
        """Return the special tokens, dict str -> id; None means control and unknown pieces."""
        processor = self._processor
        if names is None:
            return {
                processor.id_to_piece(index): index
                for index in range(self.vocabulary_size)
                if processor.is_control(index) or processor.is_unknown(index)
            }
        require_list("special_tokens", names)
        ids = {name: processor.piece_to_id(name) for name in names}
        for name, index in ids.items():
            if index == self.unk_id and processor.id_to_piece(index) != name:
                raise InputError(f"`special_tokens`: {name!r} is no piece of `model`.")
        return ids

    @functools.cached_property
    def _splitters(self):
        """The splitters of texts and of normalized texts."""
        plain = [token for token in self._special if not token.normalized]
        normalized = [
            token._replace(content=self._normalized(token.content))
            for token in self._special
            if token.normalized
        ]
        return Splitter(plain), Splitter(normalized)

    @functools.cached_property
    def _spaces(self):
        """The characters that separate words as a space does, where each word gets a prefix."""
        return _SPACE + ("" if sentencepiece_model.charsmap(self.model) else WHITE_SPACE)

    def _normalized(self, text: str) -> str:
        if self.escape:
            text = escapes.escape(text)
        if self.prefix == "words":
            return text.translate(dict.fromkeys(map(ord, self._spaces), " "))
        return (_SPACE + text).replace(" ", _SPACE) if self._adds_space and text else text

    def _normalize_in_graph(self, strings):
        import tensorflow as tf

        if self.escape:
            strings = escapes.escape_in_graph(strings)
        if self.prefix == "words":
            return tf.strings.regex_replace(strings, f"[{self._spaces}]", " ")
        if self._adds_space:
            spaced = tf.strings.regex_replace(strings, " ", _SPACE)
            return tf.where(strings == "", strings, tf.strings.join([_SPACE, spaced]))
        return strings

    def _prefixed(self, text: str, is_first: bool = True) -> str:
        """Put a space before a text, following `prefix`."""
        adds = self.prefix == "always" or (self.prefix == "first" and is_first)
        return " " + text if adds and text and text[0] not in (" ", _SPACE) else text

    def _prefixed_in_graph(self, strings, is_first=True):
        import tensorflow as tf

        if self.prefix not in ("always", "first"):
            return strings
        adds = tf.strings.regex_full_match(strings, f"(?s)[^ {_SPACE}].*")
        if self.prefix == "first":
            adds &= is_first
        return tf.where(adds, tf.strings.join([" ", strings]), strings)

    def _is_partial(self, text: str) -> bool:
        return text.endswith(("\ufffd", escapes.ESCAPE))

    def _save_files(self, folder: pathlib.Path) -> JSON:
        (folder / _MODEL_FILE).write_bytes(self.model)
        return {
            "escape": self.escape,
            "add_bos": self.add_bos,
            "prefix": self.prefix,
            "strip": self.strip,
            "special_tokens": list(self.special_tokens),
            **self.flags,
        }

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


def _sentences(source):
    """Yield the lines of the source, with long lines split."""
    if isinstance(source, (str, pathlib.Path)):
        source = [pathlib.Path(source)]
    for item in source:
        text = read_utf8(item) if isinstance(item, pathlib.Path) else item
        for line in escapes.escape(text).split("\n"):
            for begin in range(0, len(line), _LONGEST_SENTENCE):
                yield line[begin : begin + _LONGEST_SENTENCE]
