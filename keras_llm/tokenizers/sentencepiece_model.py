"""Build, extend and inspect serialized SentencePiece models."""

import collections
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from sentencepiece import sentencepiece_model_pb2

from keras_llm.errors import InputError

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
_ROLES = ("bos", "eos", "pad", "unk")
_UNKNOWN_PENALTY = 10.0  # of SentencePiece
_GRID = 128  # scores are multiples of 1 / 128
# Used for tokens that text never becomes but that have a text.
_LEAST = -1e9


class Facts(NamedTuple):
    """Properties of a SentencePiece model.

    Attributes:
        add_dummy_prefix: bool. Whether a space is put before a text (or after it).
        remove_extra_whitespaces: bool. Whether extra white space is removed from a text.
        is_cuttable: bool. Whether it is a unigram model in which no token crosses the border
            between a visible ASCII character and a space.
        is_cuttable_at_lines: bool. Whether, in addition, no token crosses the border between
            tabs and line ends and the text after them.
        most_per_byte: float. The largest absolute score that a byte of text adds.
    """

    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    is_cuttable: bool
    is_cuttable_at_lines: bool
    most_per_byte: float

    @property
    def removes_space(self) -> bool:
        """Whether decoding removes a space from the beginning of a text."""
        return self.add_dummy_prefix or self.remove_extra_whitespaces


def facts(model: bytes) -> Facts:
    """Return the `Facts` of a serialized model."""
    proto = _parsed(model)
    spec = proto.normalizer_spec
    scored = [p for p in proto.pieces if p.type in (_PIECE.NORMAL, _PIECE.USER_DEFINED)]
    is_cuttable = (
        _is_unigram(proto)
        and spec.escape_whitespaces
        and not proto.trainer_spec.treat_whitespace_as_suffix
        and (spec.add_dummy_prefix or not spec.remove_extra_whitespaces)
        and any(piece.piece == "\u2581" for piece in scored)
        and not any(re.search("[!-~]\u2581|[!-~] ", piece.piece) for piece in scored)
    )
    is_cuttable_at_lines = (
        is_cuttable
        and not spec.remove_extra_whitespaces
        and not spec.precompiled_charsmap
        and proto.trainer_spec.byte_fallback  # else, adjacent unknown characters are one token
        and not any(re.search("[\t\n\r][^\t\n\r]", piece.piece) for piece in scored)
    )
    scores = [piece.score for piece in scored if piece.type == _PIECE.NORMAL]
    least = min(scores, default=0.0) - _UNKNOWN_PENALTY
    most = max(-least, *(abs(score) for score in scores), 1.0)
    return Facts(
        spec.add_dummy_prefix,
        spec.remove_extra_whitespaces,
        is_cuttable,
        is_cuttable_at_lines,
        most,
    )


def exact(model: bytes) -> bytes:
    """Round the scores of a unigram model to multiples of 1/128.

    SentencePiece adds up scores in float32, so that of two segmentations with equal scores, such
    as "10 0 00" and "10 00 0", another one wins depending on rounding errors: on the text before
    it and on the version of the library. The sums of rounded scores are exact. Then the
    segmentation wins whose last token, where they differ, is longer, as in the `tokenizers`
    library. Other models are returned unchanged.

    Args:
        model: bytes, a serialized SentencePiece model.

    Returns:
        bytes, a serialized SentencePiece model.
    """
    proto = _parsed(model)
    if not _is_unigram(proto):
        return model
    spec = proto.normalizer_spec
    normalizes = bool(spec.precompiled_charsmap) or spec.remove_extra_whitespaces
    for piece in proto.pieces:
        if piece.type == _PIECE.NORMAL:
            piece.score = round(piece.score * _GRID) / _GRID
        elif piece.type == _PIECE.USER_DEFINED and (not normalizes or _is_stable(piece.piece)):
            # The bonus that the library gives to these pieces, which also differs by version.
            piece.type = _PIECE.NORMAL
            piece.score = round(0.1 * (len(piece.piece.encode()) - 1) * _GRID) / _GRID
    return proto.SerializeToString()


def without_prefix(model: bytes) -> bytes:
    """Return the model without the space that is put before a text."""
    proto = _parsed(model)
    proto.normalizer_spec.add_dummy_prefix = False
    return proto.SerializeToString()


def _is_stable(piece):
    """Return whether normalization cannot change a piece."""
    return unicodedata.normalize("NFKC", piece).casefold() == piece and not piece.isspace()


def _is_unigram(proto):
    return proto.trainer_spec.model_type == sentencepiece_model_pb2.TrainerSpec.UNIGRAM


def completed(
    model: bytes,
    added: dict[str, int] | tuple[()] = (),
    roles: dict[str, str | None] | None = None,
    spoken: Iterable[str] = (),
) -> bytes:
    """Add tokens to a model that are stored in other files.

    Args:
        model: bytes, a serialized SentencePiece model.
        added: dict str -> id. Tokens that the model lacks are appended as control pieces.
        roles: dict of "bos", "eos", "pad" to a piece; only control pieces are used. Other roles
            keep the model's pieces.
        spoken: strs in `added` that `decode` returns as text.

    Returns:
        bytes, a serialized SentencePiece model.

    Raises:
        InputError: if the ids of `added` differ from the model's or do not follow them.
    """
    proto = _parsed(model)
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    spoken = set(spoken)
    for token, index in sorted(dict(added).items(), key=lambda item: item[1]):
        expected = ids.setdefault(token, len(proto.pieces))
        if index != expected:
            raise InputError(
                f"the added token {token!r} has id {index}, but the SentencePiece model expects "
                f"{expected}."
            )
        if index == len(proto.pieces):
            if token in spoken:
                proto.pieces.add(piece=token, score=_LEAST, type=_PIECE.UNUSED)
            else:
                proto.pieces.add(piece=token, score=0.0, type=_PIECE.CONTROL)
    for role, name in (roles or {}).items():
        if ids.get(name) is not None and proto.pieces[ids[name]].type == _PIECE.CONTROL:
            setattr(proto.trainer_spec, f"{role}_piece", name)
            setattr(proto.trainer_spec, f"{role}_id", ids[name])
    return proto.SerializeToString()


def from_pieces(
    pieces: list[str],
    scores: list[float],
    types: list[int],
    roles: dict[str, int],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    unigram: bool = False,
    charsmap: bytes = b"",
) -> bytes:
    """Build a model from pieces with scores.

    Args:
        pieces: list of str.
        scores: list of float. In a BPE model, the highest score is merged first.
        types: list of int, as in SentencePiece: 1 normal, 2 unknown, 3 control, 4 user
            defined, 5 unused, 6 byte.
        roles: dict of "bos", "eos", "pad", "unk" to an id, or -1 if there is none.
        add_dummy_prefix: bool. Whether a space is put before a text.
        remove_extra_whitespaces: bool. Whether extra white space is removed from a text.
        unigram: bool. Whether it is a unigram model instead of a BPE model.
        charsmap: bytes, the precompiled rules that normalize characters.

    Returns:
        bytes, a serialized SentencePiece model.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec = proto.trainer_spec
    kinds = sentencepiece_model_pb2.TrainerSpec
    spec.model_type = kinds.UNIGRAM if unigram else kinds.BPE
    spec.vocab_size = len(pieces)
    spec.byte_fallback = 6 in types
    for role in _ROLES:
        index = roles.get(role, -1)
        setattr(spec, f"{role}_id", index)
        # An empty name matches no piece.
        setattr(spec, f"{role}_piece", pieces[index] if index >= 0 else "")
    proto.normalizer_spec.name = "user_defined" if charsmap else "identity"
    model = proto.SerializeToString()
    return with_normalizer(model, add_dummy_prefix, remove_extra_whitespaces, charsmap)


def with_normalizer(
    model: bytes, add_dummy_prefix: bool, remove_extra_whitespaces: bool, charsmap: bytes
) -> bytes:
    """Return a model with other rules for normalization; the arguments are of `from_pieces`."""
    proto = _parsed(model)
    proto.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = remove_extra_whitespaces
    proto.normalizer_spec.precompiled_charsmap = charsmap
    return proto.SerializeToString()


def charsmap(model: bytes) -> bytes:
    """Return the precompiled rules of a model that normalize characters; b"" if there are none."""
    return bytes(_parsed(model).normalizer_spec.precompiled_charsmap)


def pieces(model: bytes) -> list[str]:
    """Return the pieces of a serialized model by id, a list of str."""
    return [piece.piece for piece in _parsed(model).pieces]


def role(model: bytes, name: str) -> str | None:
    """Return the piece of a role, such as "bos"; None if there is none."""
    proto = _parsed(model)
    index = getattr(proto.trainer_spec, f"{name}_id")
    return proto.pieces[index].piece if 0 <= index < len(proto.pieces) else None


def parts(model: bytes) -> tuple[list[str], list[float], list[int]]:
    """Return pieces (list of str), scores (list of float) and ids of control and unknown pieces."""
    pieces = _parsed(model).pieces
    special = [i for i, p in enumerate(pieces) if p.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)]
    return [p.piece for p in pieces], [p.score for p in pieces], special


def is_unigram(model: bytes) -> bool:
    """Return whether a serialized model is a unigram model; otherwise it is a BPE model."""
    return _is_unigram(_parsed(model))


def _parsed(model):
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as error:  # the exception class depends on the protobuf implementation
        raise InputError(f"not a SentencePiece model: {error}") from None
    return proto


def coverage(characters: collections.Counter[str], most: int) -> float:
    """Return the share of the text that its `most` most frequent characters cover.

    The result is within the bounds of SentencePiece.
    """
    covered = sum(count for _, count in characters.most_common(max(1, most)))
    return min(max(0.98, covered / characters.total()), 0.9995)
