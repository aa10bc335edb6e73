"""Build, extend and inspect serialized SentencePiece models."""

from sentencepiece import sentencepiece_model_pb2

from keras_llm.errors import InputError

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
_ROLES = ("bos", "eos", "pad", "unk")


def completed(
    model: bytes, added: dict[str, int] | tuple[()] = (), roles: dict[str, str | None] | None = None
) -> bytes:
    """Add tokens to a model that are stored in other files.

    Args:
        model: bytes, a serialized SentencePiece model.
        added: dict str -> id. Tokens that the model lacks are appended as control pieces.
        roles: dict of "bos", "eos", "pad" to a piece; only control pieces are used. Other roles
            keep the model's pieces.

    Returns:
        bytes, a serialized SentencePiece model.

    Raises:
        InputError: if the ids of `added` differ from the model's or do not follow them.
    """
    proto = _parsed(model)
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    for token, index in sorted(dict(added).items(), key=lambda item: item[1]):
        expected = ids.setdefault(token, len(proto.pieces))
        if index != expected:
            raise InputError(
                f"the added token {token!r} has id {index}, but the SentencePiece model expects "
                f"{expected}."
            )
        if index == len(proto.pieces):
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
) -> bytes:
    """Build a BPE model from pieces with scores.

    Args:
        pieces: list of str.
        scores: list of float; the highest score is merged first.
        types: list of int, as in SentencePiece: 1 normal, 2 unknown, 3 control, 4 user
            defined, 5 unused, 6 byte.
        roles: dict of "bos", "eos", "pad", "unk" to an id, or -1 if there is none.
        add_dummy_prefix: bool. Whether a space is put before a text.
        remove_extra_whitespaces: bool. Whether extra white space is removed from a text.

    Returns:
        bytes, a serialized SentencePiece model.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec = proto.trainer_spec
    spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    spec.vocab_size = len(pieces)
    spec.byte_fallback = 6 in types
    for role in _ROLES:
        index = roles.get(role, -1)
        setattr(spec, f"{role}_id", index)
        # An empty name matches no piece.
        setattr(spec, f"{role}_piece", pieces[index] if index >= 0 else "")
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = remove_extra_whitespaces
    return proto.SerializeToString()


def pieces(model: bytes) -> list[str]:
    """Return the pieces of a serialized model by id, a list of str."""
    return [piece.piece for piece in _parsed(model).pieces]


def parts(model: bytes) -> tuple[list[str], list[float], list[int]]:
    """Return pieces (list of str), scores (list of float) and ids of control and unknown pieces."""
    pieces = _parsed(model).pieces
    special = [i for i, p in enumerate(pieces) if p.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)]
    return [p.piece for p in pieces], [p.score for p in pieces], special


def is_unigram(model: bytes) -> bool:
    """Return whether a serialized model is a unigram model; otherwise it is a BPE model."""
    spec = _parsed(model).trainer_spec
    return spec.model_type == sentencepiece_model_pb2.TrainerSpec.UNIGRAM


def _parsed(model):
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as error:  # the exception class depends on the protobuf implementation
        raise InputError(f"not a SentencePiece model: {error}") from None
    return proto
