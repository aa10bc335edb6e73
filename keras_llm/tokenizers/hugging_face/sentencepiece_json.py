"""Read the tokenizer.json of tokenizers that were converted from SentencePiece models."""

import base64
import re
from typing import NamedTuple

from keras_llm.errors import InputError
from keras_llm.tokenizers import sentencepiece_model
from keras_llm.tokenizers.escapes import ESCAPES

_SPACE = "\u2581"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE_PIECE = range(1, 7)
# Regular expressions and their replacements that remove extra white space as SentencePiece does.
EXTRA_SPACES = ((r"\A +| +\z", ""), (" {2,}", " "))
# Removes extra white space, before a pre-tokenizer that puts a space before each word.
_COLLAPSING = [
    [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": space},
    ]
    for space in (_SPACE, " ")
]
_EXTRA_SPACES = [
    {"type": "Replace", "pattern": {"Regex": a}, "content": b} for a, b in EXTRA_SPACES
]


class Rules(NamedTuple):
    """How text is prepared for a model.

    Attributes:
        prefix: as in `SentencePiece`.
        add_dummy_prefix, remove_extra_whitespaces: bools, as in `sentencepiece_model.from_pieces`.
        charsmap: bytes, as there.
        strip: bool. Whether decoding removes a space from the beginning, or None if there is no
            decoder.
        escape: bool, as in `SentencePiece`.
    """

    prefix: str | None
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes
    strip: bool | None
    escape: bool


def read_rules(path, data):
    """Return the `Rules` of a tokenizer.json.

    Raises:
        InputError: if a setting is not supported.
    """
    normalizers = _parts(data.get("normalizer"), "normalizers")
    steps = _parts(data.get("pre_tokenizer"), "pretokenizers")
    charsmap = b""
    if normalizers and normalizers[0]["type"] == "Precompiled":
        charsmap = base64.b64decode(normalizers.pop(0)["precompiled_charsmap"] or "")
    escape = normalizers[: len(ESCAPES)] == [
        {"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in ESCAPES
    ]
    if escape:
        normalizers = normalizers[len(ESCAPES) :]
    if steps and _is_space_split(steps[0]) and normalizers and normalizers[-1] == _REPLACE:
        del steps[0]  # no space is left
    scheme, splits = None, False
    if steps and steps[-1]["type"] == "Metaspace":
        scheme, splits = _metaspace(path, steps.pop(), "pre_tokenizer")
    by_word = steps == [{"type": "WhitespaceSplit"}] and normalizers == []
    by_word = by_word or (not steps and normalizers in _COLLAPSING)
    strip = _strip(path, data.get("decoder"))
    if not steps and normalizers == _EXTRA_SPACES and scheme in ("always", "never"):
        _require_strip(path, strip)
        return Rules(None, scheme == "always", True, charsmap, None, escape)
    if by_word and scheme == "always":
        _require_strip(path, strip)
        return Rules("words", True, True, charsmap, None, escape)
    if steps:
        raise _unsupported(path, "pre_tokenizer", data)
    if splits:
        _require_splittable(path, data)
    if charsmap:
        raise _unsupported(path, "normalizer", data)
    if scheme is not None and normalizers in ([], [_REPLACE]):
        # Where all spaces are written as U+2581, it still puts one before a text.
        return Rules(scheme, False, False, b"", strip, escape)
    if scheme is None and normalizers == [_REPLACE]:
        return Rules("never", False, False, b"", strip, escape)
    if scheme is None and normalizers == [{"type": "Prepend", "prepend": _SPACE}, _REPLACE]:
        return Rules(None, True, False, b"", None if strip else strip, escape)
    raise _unsupported(path, "normalizer", data)


def read_model(path, data, roles):
    """Build the SentencePiece model of a tokenizer.json.

    Args:
        roles: dict of "bos", "eos", "pad", "unk" to a token or None.

    Raises:
        InputError: if SentencePiece cannot encode as the file says.
    """
    model = data["model"]
    unigram = model["type"] == "Unigram"
    added = {token["content"]: token for token in data.get("added_tokens") or []}
    if unigram:
        scored = [(str(piece), float(score)) for piece, score in model["vocab"]]
        unknown = model.get("unk_id")
        ids = {piece: index for index, (piece, _) in enumerate(scored)}
        scores = dict(scored)
        unknown = None if unknown is None else scored[unknown][0]
    else:
        ids, unknown = dict(model["vocab"]), model.get("unk_token")
        if unknown is None and _has_all_bytes(model):  # nothing is unknown
            names = [roles.get("unk"), "<unk>", *added]
            unknown = next((name for name in names if name in ids), None)
        scores = _scores(path, model, {unknown, *added})
    if unknown is None or unknown not in ids:
        raise InputError(f"{path}: the model has no unknown token, which is required.")
    inside = set(ids)
    for token in added.values():
        if ids.setdefault(token["content"], token["id"]) != token["id"]:
            raise InputError(
                f"{path}: the added token {token['content']!r} has id {token['id']}, but id "
                f"{ids[token['content']]} in the vocabulary."
            )
    pieces = sorted(ids, key=ids.get)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise InputError(
            f"{path}: the ids of the {len(pieces)} tokens must be 0 to {len(ids) - 1}."
        )
    used = {piece for piece in inside if len(piece) == 1 or (not unigram and piece in scores)}
    apart = {piece: token for piece, token in added.items() if piece not in used}
    types = [_type(piece, unknown, apart, inside, model.get("byte_fallback")) for piece in pieces]
    lowest = min(scores.values(), default=0.0)
    names = {role: ids.get(name, -1) for role, name in roles.items()}
    return sentencepiece_model.from_pieces(
        pieces,
        [scores.get(piece, lowest) for piece in pieces],
        types,
        {**names, "unk": ids[unknown]},
        False,
        False,
        unigram,
    )


def check_model(path, data):
    """Raise InputError if SentencePiece does not encode as the model of a tokenizer.json says."""
    model = data["model"]
    for name, accepted in (
        ("dropout", (None, 0, 0.0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
        ("ignore_merges", (None, False)),
    ):
        if model.get(name) not in accepted:
            raise InputError(f"{path}: model.{name} is {model[name]!r}, which is not supported.")
    if model["type"] == "BPE" and model.get("fuse_unk") is False and not _has_all_bytes(model):
        raise InputError(
            f"{path}: model.fuse_unk is False, which is only supported with all 256 bytes in the "
            "vocabulary."
        )


def _has_all_bytes(model):
    return all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))


def _parts(data, name):
    """Return the steps of a normalizer or pre-tokenizer, a list of dicts."""
    if not data:
        return []
    if data["type"] == "Sequence":
        return [step for part in data[name] for step in _parts(part, name)]
    return [dict(data)]


def _is_space_split(step):
    return step["type"] == "Split" and step["pattern"] == {"String": " "}


def _metaspace(path, step, name):
    """Return the `prepend_scheme` of a Metaspace, and whether it splits text into words."""
    if step.get("replacement") != _SPACE:
        raise InputError(
            f"{path}: the replacement of {name} is {step.get('replacement')!r}, but must be "
            f"{_SPACE!r}."
        )
    scheme = step.get("prepend_scheme")
    if scheme is None:
        scheme = "always" if step.get("add_prefix_space", True) else "never"
    if scheme not in ("always", "first", "never"):
        raise InputError(f"{path}: prepend_scheme of {name} is {scheme!r}, which is not supported.")
    return scheme, bool(step.get("split", True))


def _strip(path, decoder):
    """Return whether a decoder removes a space from the beginning; None if there is none."""
    parts = _parts(decoder, "decoders")
    if not parts:
        return None
    if len(parts) == 1 and parts[0]["type"] == "Metaspace":
        return _metaspace(path, parts[0], "decoder")[0] != "never"
    to_space = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    back = [
        {"type": "Replace", "pattern": {"String": b}, "content": a} for a, b in reversed(ESCAPES)
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    base = [part for part in parts if part not in (strip, *back)]
    if base in ([to_space, {"type": "ByteFallback"}, {"type": "Fuse"}], [to_space]):
        return strip in parts
    raise InputError(
        f"{path}: the decoder is {decoder}; it must replace {_SPACE!r} by a space, decode bytes, "
        "and remove at most one space from the beginning."
    )


def _require_strip(path, strip):
    if strip is False:
        raise InputError(
            f"{path}: the decoder keeps the space that is put before each text, which is not "
            "supported with a pre_tokenizer that splits text into words."
        )


def _require_splittable(path, data):
    vocabulary = data["model"]["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary]
    added = {token["content"] for token in data.get("added_tokens") or []}
    crossing = [piece for piece in pieces if _SPACE in piece[1:] and piece not in added]
    if crossing:
        raise InputError(
            f"{path}: the pre_tokenizer splits text into words, but the vocabulary has "
            f"{crossing[0]!r}, which is more than a word; this is not supported."
        )


def _unsupported(path, name, data):
    return InputError(
        f"{path}: the {name} is {str(data.get(name))[:300]}, which is not supported together with "
        "the other settings of the file."
    )


def _type(piece, unknown, added, inside, byte_fallback):
    """Return the type of a piece; `inside` are the tokens of the model itself."""
    if piece == unknown:
        return _UNKNOWN
    if piece in added:
        if added[piece].get("special", True):
            return _CONTROL
        return _USER_DEFINED if piece in inside else _UNUSED
    return _BYTE_PIECE if byte_fallback and _BYTE.fullmatch(piece) else _NORMAL


def _scores(path, model, apart):
    """Return scores that make SentencePiece merge in the order of a BPE model.

    SentencePiece merges every pair of tokens whose concatenation is a piece.

    Args:
        apart: set of the tokens that are never merged.
    """
    vocabulary, scores, last = model["vocab"], {}, None
    listed = set()
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        piece = left + right
        listed.add((left, right))
        if piece != last and piece in scores:
            raise _no_merges(path, f"{left!r} and {right!r} are not merged after the other parts")
        scores.setdefault(piece, -float(rank))
        last = piece
    for piece in vocabulary:
        if piece in apart:
            continue
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in listed:
                raise _no_merges(path, f"{pair[0]!r} and {pair[1]!r} are not merged")
    return scores


def _no_merges(path, reason):
    return InputError(
        f"{path}: model.merges are not those of a SentencePiece model: {reason}; tokenizer.model "
        "is needed."
    )
