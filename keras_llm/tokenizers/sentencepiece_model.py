"""SentencePiece models put together from parts that came apart."""

from sentencepiece import sentencepiece_model_pb2

from keras_llm.errors import InputError

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
_ROLES = ("bos", "eos", "pad", "unk")


def completed(model, added=(), roles=None):
    """A model with tokens that another program keeps beside it.

    Args:
        model: bytes, a serialised SentencePiece model.
        added: dict str -> id. Those that the model lacks follow its pieces as control pieces.
        roles: dict of "bos", "eos", "pad" to a piece; only control pieces count. Others keep
            what the model says.

    Returns:
        bytes, a serialised SentencePiece model.

    Raises:
        InputError: if the ids of `added` are not the model's, or do not follow them.
    """
    proto = _parsed(model)
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    for token, index in sorted(dict(added).items(), key=lambda item: item[1]):
        expected = ids.setdefault(token, len(proto.pieces))
        if index != expected:
            raise InputError(
                f"the added token {token!r} has id {index}, where the SentencePiece model leaves "
                f"{expected}."
            )
        if index == len(proto.pieces):
            proto.pieces.add(piece=token, score=0.0, type=_PIECE.CONTROL)
    for role, token in (roles or {}).items():
        if ids.get(token) is not None and proto.pieces[ids[token]].type == _PIECE.CONTROL:
            setattr(proto.trainer_spec, f"{role}_piece", token)
            setattr(proto.trainer_spec, f"{role}_id", ids[token])
    return proto.SerializeToString()


def from_pieces(pieces, scores, types, roles, add_dummy_prefix, remove_extra_whitespaces):
    """A BPE model of pieces with scores.

    Args:
        pieces: list of str.
        scores: list of float, the highest merged first.
        types: list of int, as in SentencePiece: 1 normal, 2 unknown, 3 control, 4 user
            defined, 5 unused, 6 byte.
        roles: dict of "bos", "eos", "pad", "unk" to an id, or -1 where there is none.
        add_dummy_prefix: bool. Whether a space is put before a text.
        remove_extra_whitespaces: bool.

    Returns:
        bytes, a serialised SentencePiece model.
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
        # An empty name finds no piece.
        setattr(spec, f"{role}_piece", pieces[index] if index >= 0 else "")
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = remove_extra_whitespaces
    return proto.SerializeToString()


def pieces(model):
    """The pieces of a serialised model by id, a list of str."""
    return [piece.piece for piece in _parsed(model).pieces]


def parts(model):
    """Pieces (list of str), scores (list of float) and ids of control and unknown pieces."""
    found = _parsed(model).pieces
    special = [i for i, p in enumerate(found) if p.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)]
    return [p.piece for p in found], [p.score for p in found], special


def is_unigram(model):
    """Whether a serialised model is a unigram model; the other kind here is BPE."""
    spec = _parsed(model).trainer_spec
    return spec.model_type == sentencepiece_model_pb2.TrainerSpec.UNIGRAM


def _parsed(model):
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as error:  # protobuf's class of it depends on its implementation
        raise InputError(f"not a SentencePiece model: {error}") from None
    return proto
