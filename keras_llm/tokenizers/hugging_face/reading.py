"""Load tokenizers from the files of Hugging Face libraries."""

import functools
import json
import pathlib

from keras_llm.errors import InputError
from keras_llm.files import read_utf8
from keras_llm.json_files import check_arguments, read_json
from keras_llm.tokenizers import byte_pair, sentencepiece_model, word_piece
from keras_llm.tokenizers.byte_pair import BytePair
from keras_llm.tokenizers.chat_template import ChatTemplate
from keras_llm.tokenizers.graph.byte_pair import UTF8_BYTES
from keras_llm.tokenizers.hugging_face import sentencepiece_json
from keras_llm.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from keras_llm.tokenizers.sentencepiece import SentencePiece
from keras_llm.tokenizers.special_tokens import FLAGS
from keras_llm.tokenizers.word_piece import WordPiece
from keras_llm.types import PathLike

_SENTENCE_PIECE_FILES = ("tokenizer.model", "spiece.model")
_ROLES = ("bos", "eos", "pad", "unk")
_WRONG_TYPES = (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError)


def _one_error(function):
    """Raise InputError for values of wrong types, which files may have anywhere."""

    @functools.wraps(function)
    def checked(folder):
        try:
            return function(folder)
        except InputError:
            raise
        except _WRONG_TYPES as error:
            raise InputError(f"{folder} has no valid tokenizer: {error!r}.") from None

    return checked


@_one_error
def from_hugging_face(folder: PathLike) -> BytePair | SentencePiece | WordPiece:
    """Load the tokenizer of a Hugging Face checkpoint.

    `encode(text, parse_special=True)` returns the ids of the original without the tokens that it
    adds around a text. Truncation and padding settings are ignored.

    Args:
        folder: str or path with tokenizer.json; with tokenizer.model (spiece.model), which
            models converted from SentencePiece need; with vocab.json and merges.txt (GPT-2); or
            with vocab.txt (BERT). tokenizer_config.json and special_tokens_map.json are read too.

    Returns:
        A `BytePair`, `SentencePiece` or `WordPiece`.

    Raises:
        InputError: if there is no such file, or a setting is not supported.
    """
    folder = pathlib.Path(folder)
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        return _from_json(path, read_json(path), settings)
    model = _sentence_piece_file(folder)
    if model:
        return _sentence_piece(model, settings)
    if (folder / "vocab.json").is_file():
        return _gpt2(folder, settings)
    if (folder / "vocab.txt").is_file():
        return _bert(folder, settings)
    raise InputError(
        f"{folder} has no tokenizer: it needs tokenizer.json, tokenizer.model, vocab.json with "
        "merges.txt, or vocab.txt."
    )


@_one_error
def chat_template_from_hugging_face(folder: PathLike) -> ChatTemplate | None:
    """Load the chat template of a Hugging Face checkpoint.

    Args:
        folder: str or path, with chat_template.jinja, or a template in tokenizer_config.json.

    Returns:
        A `ChatTemplate`, the one named "default" if there are several, or None.

    Raises:
        InputError: if the template is invalid.
    """
    folder = pathlib.Path(folder)
    settings = _settings(folder)
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict)]
        source = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if (folder / "chat_template.jinja").is_file():
        source = read_utf8(folder / "chat_template.jinja")
    if source is None:
        return None
    roles = _role_names(settings)
    try:
        return ChatTemplate(source, bos=roles["bos"], eos=roles["eos"])
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _settings(folder):
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings.update(read_json(folder / name))
    return settings


def _from_json(path, data, settings):
    try:
        kind = data["model"].get("type")
        if kind == "WordPiece":
            return _word_piece(path, data)
        if kind == "Unigram" or (kind == "BPE" and data["model"].get("byte_fallback")):
            return _converted(path, data, settings)
        if kind == "BPE":
            return _byte_pair(path, data, settings)
    except InputError:
        raise
    except _WRONG_TYPES as error:
        raise InputError(f"{path} is not a valid tokenizer: {error!r}.") from None
    raise InputError(
        f"{path}: the model is {kind!r}; only BPE, Unigram and WordPiece are supported."
    )


# Byte-level BPE


def _byte_pair(path, data, settings):
    model = data["model"]
    _refuse(path, "model.dropout", model.get("dropout"), (None, 0, 0.0))
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        _refuse(path, f"model.{name}", model.get(name), (None, ""))
    _refuse(path, "decoder", (data.get("decoder") or {}).get("type"), ("ByteLevel", None))
    vocabulary = model["vocab"]
    if model.get("unk_token"):
        missing = [b for b in UTF8_BYTES if byte_pair.CHARACTERS[b] not in vocabulary]
        if missing:
            raise InputError(
                f"{path}: model.unk_token is {model['unk_token']!r} and the vocabulary lacks the "
                f"byte {missing[0]:#04x}; an unk_token is only supported with all bytes."
            )
    added = data.get("added_tokens") or []
    roles = _role_names(settings)
    tokens = {**vocabulary, **{token["content"]: token["id"] for token in added}}
    return _made(
        BytePair,
        vocabulary,
        [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        _pre_tokenizer(path, data.get("pre_tokenizer")),
        {token["content"]: token["id"] for token in added},
        **{role: name for role, name in roles.items() if name in tokens},
        normalization=_normalization(path, data.get("normalizer")),
        ignore_merges=bool(model.get("ignore_merges")),
        add_bos=_adds_bos(data, settings, roles["bos"]),
        **_flags(added),
    )


def _gpt2(folder, settings):
    vocabulary = read_json(folder / "vocab.json")
    roles = {role: name for role, name in _role_names(settings).items() if name in vocabulary}
    end = "<|endoftext|>"
    if not roles and end in vocabulary:  # the files of the first release do not name roles
        roles = {"bos": end, "eos": end}
    return _made(
        BytePair,
        vocabulary,
        byte_pair.read_merges(folder / "merges.txt"),
        special_tokens=list(dict.fromkeys(roles.values())),
        **roles,
        add_bos=bool(settings.get("add_bos_token", False)),
    )


def _pre_tokenizer(path, data):
    """Return the name of the pre-tokenizer that equals the "pre_tokenizer" entry."""
    parts = data["pretokenizers"] if data and data.get("type") == "Sequence" else [data]
    parts = [part for part in parts if part]
    split_digits = len(parts) > 1 and parts[0]["type"] == "Digits" and parts[0]["individual_digits"]
    parts = parts[1:] if split_digits else parts
    pattern = None
    if len(parts) == 2 and parts[0]["type"] == "Split":
        if parts[0]["behavior"] == "Isolated" and not parts[0].get("invert"):
            pattern = parts[0]["pattern"].get("Regex")
        parts = parts[1:]
        uses_own = False
    else:
        pattern, uses_own = PRE_TOKENIZERS["gpt2"].pattern, True
    is_byte_level = (
        len(parts) == 1
        and parts[0]["type"] == "ByteLevel"
        and not parts[0].get("add_prefix_space")
        and parts[0].get("use_regex", True) == uses_own
    )
    for name, option in PRE_TOKENIZERS.items():
        if is_byte_level and (pattern, split_digits) == (option.pattern, option.split_digits):
            return name
    raise InputError(
        f"{path}: the pre_tokenizer is {json.dumps(data)}; it must be byte-level, split like one "
        f"of {', '.join(PRE_TOKENIZERS)}, and not add a space before the text."
    )


def _normalization(path, data):
    parts = data["normalizers"] if data and data.get("type") == "Sequence" else [data]
    parts = [part for part in parts if part]
    if not parts:
        return None
    if parts == [{"type": "NFC"}]:
        return "NFC"
    raise InputError(
        f"{path}: the normalizer is {json.dumps(data)}; only none and NFC are supported."
    )


# WordPiece


def _word_piece(path, data):
    model, normalizer = data["model"], data.get("normalizer") or {}
    _refuse(path, "normalizer", normalizer.get("type"), ("BertNormalizer",))
    _refuse(path, "normalizer.clean_text", normalizer.get("clean_text"), (True,))
    kind = (data.get("pre_tokenizer") or {}).get("type")
    _refuse(path, "pre_tokenizer", kind, ("BertPreTokenizer",))
    _refuse(path, "model.unk_token", model.get("unk_token"), ("[UNK]",))
    prefix = model.get("continuing_subword_prefix")
    _refuse(path, "model.continuing_subword_prefix", prefix, (word_piece.PREFIX,))
    added = data.get("added_tokens") or []
    flags = _flags(added)
    normalized = flags.pop("normalized")
    if normalized:
        raise InputError(
            f"{path}: the added token {normalized[0]!r} has normalized, which WordPiece does not "
            "support."
        )
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    pieces = {index: piece for piece, index in ids.items()}
    if sorted(pieces) != list(range(len(ids))):
        raise InputError(
            f"{path}: the ids of the {len(ids)} pieces must be 0 to {len(ids) - 1}, each once."
        )
    return _made(
        WordPiece,
        [pieces[index] for index in range(len(pieces))],
        lowercase=normalizer["lowercase"],
        strip_accents=normalizer.get("strip_accents"),
        split_chinese=normalizer["handle_chinese_chars"],
        max_word_length=model.get("max_input_chars_per_word", 100),
        special_tokens=[token["content"] for token in added],
        **flags,
    )


def _bert(folder, settings):
    return _made(
        WordPiece,
        word_piece.read_vocabulary(folder / "vocab.txt"),
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        split_chinese=settings.get("tokenize_chinese_chars", True),
    )


# SentencePiece


def _converted(path, data, settings):
    """Load a tokenizer.json that was converted from a SentencePiece model."""
    sentencepiece_json.check_model(path, data)
    added, roles = data.get("added_tokens") or [], _role_names(settings)
    file = _sentence_piece_file(path.parent)
    if file:
        model = _completed(file, added, roles)
        _require_same_ids(file, model, data, added)
        if "normalizer" not in data and "pre_tokenizer" not in data:
            return _with_added(file, model, added, data, settings, escape=False)
    rules = sentencepiece_json.read_rules(path, data)
    if not file:
        model = sentencepiece_json.read_model(path, data, roles)
    model = sentencepiece_model.with_normalizer(
        model, rules.add_dummy_prefix, rules.remove_extra_whitespaces, rules.charsmap
    )
    options = {"escape": rules.escape, "prefix": rules.prefix, "strip": rules.strip}
    return _with_added(file or path, model, added, data, settings, **options)


def _sentence_piece(path, settings):
    """Load a SentencePiece model without tokenizer.json."""
    added = [
        {**token, "id": int(index)}
        for index, token in settings.get("added_tokens_decoder", {}).items()
    ]
    model = _completed(path, added, _role_names(settings))
    prefix, facts = None, sentencepiece_model.facts(model)
    if facts.add_dummy_prefix and not facts.remove_extra_whitespaces:
        if settings.get("add_prefix_space") is False:
            prefix = "never"
        elif settings.get("legacy") is False:
            prefix = "first"
    return _with_added(path, model, added, {}, settings, escape=False, prefix=prefix)


def _completed(path, added, roles):
    ids = {token["content"]: token["id"] for token in added}
    spoken = [token["content"] for token in added if token.get("special") is False]
    try:
        return sentencepiece_model.completed(path.read_bytes(), ids, roles, spoken)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _with_added(path, model, added, data, settings, **options):
    """Return the `SentencePiece` of a model whose added tokens have flags."""
    names = [token["content"] for token in added]
    if not data:
        pieces, _, special = sentencepiece_model.parts(model)
        names = list(dict.fromkeys([*(pieces[index] for index in special), *names]))
    bos = sentencepiece_model.role(model, "bos")
    adds_bos = _adds_bos(data, settings, bos) if data.get("post_processor") else True
    if settings.get("add_bos_token") is not None:
        adds_bos = bool(settings["add_bos_token"])
    try:
        return SentencePiece(
            model, add_bos=adds_bos, special_tokens=names, **_flags(added), **options
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _require_same_ids(path, model, data, added):
    vocabulary, added = data["model"]["vocab"], {token["content"] for token in added}
    if not isinstance(vocabulary, dict):
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    for index, piece in enumerate(sentencepiece_model.pieces(model)):
        if piece not in added and vocabulary.get(piece) != index:
            raise InputError(
                f"{path} has {piece!r} as id {index}, but tokenizer.json has it as "
                f"{vocabulary.get(piece)}."
            )


def _sentence_piece_file(folder):
    files = (folder / name for name in _SENTENCE_PIECE_FILES)
    return next((path for path in files if path.is_file()), None)


# Shared helpers


def _made(tokenizer_class, *arguments, **options):
    """Return a tokenizer; raise InputError for options of wrong types."""
    check_arguments(tokenizer_class, options, "the tokenizer")
    return tokenizer_class(*arguments, **options)


def _refuse(path, name, value, accepted):
    if value not in accepted:
        choices = " or ".join(map(repr, accepted))
        raise InputError(f"{path}: {name} is {value!r}, but must be {choices}.")


def _flags(added):
    """Return the added tokens that have each flag, dict flag -> list of str."""
    return {flag: [t["content"] for t in added if t.get(flag)] for flag in FLAGS}


def _role_names(settings):
    """Return the token of each role, or None."""
    names = {role: settings.get(f"{role}_token") for role in _ROLES}
    return {r: n.get("content") if isinstance(n, dict) else n for r, n in names.items()}


def _adds_bos(data, settings, bos):
    """Return whether the original starts a text with the begin token."""
    if "add_bos_token" in settings and settings["add_bos_token"] is not None:
        return bool(settings["add_bos_token"])
    processor = data.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        if part.get("type") == "TemplateProcessing":
            return part["single"][0].get("SpecialToken", {}).get("id") == bos
        if part.get("type") in ("RobertaProcessing", "BertProcessing"):
            return part["cls"][0] == bos
    return False
