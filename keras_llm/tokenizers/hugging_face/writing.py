"""Write tokenizers as the files of Hugging Face libraries."""

import json
import pathlib

import tokenizers

from keras_llm.errors import InputError
from keras_llm.tokenizers import sentencepiece_model
from keras_llm.tokenizers.byte_pair import BytePair
from keras_llm.tokenizers.chat_template import ChatTemplate
from keras_llm.tokenizers.escapes import ESCAPES
from keras_llm.tokenizers.hugging_face.sentencepiece_json import EXTRA_SPACES
from keras_llm.tokenizers.sentencepiece import SentencePiece
from keras_llm.tokenizers.special_tokens import special_tokens_of
from keras_llm.tokenizers.word_piece import WordPiece
from keras_llm.types import PathLike


def to_hugging_face(
    tokenizer: BytePair | SentencePiece | WordPiece,
    folder: PathLike,
    chat_template: ChatTemplate | None = None,
) -> None:
    """Write the files that `tokenizers.Tokenizer.from_file` and `AutoTokenizer` read.

    Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, plus vocab.txt for a
    `WordPiece` and tokenizer.model for a `SentencePiece`. A `SentencePiece` that was not trained
    with this library gets no tokenizer.json, unless it has a `prefix` or special tokens with flags;
    programs that need one convert tokenizer.model as they do for the original. The loaded tokenizer
    returns the ids of `encode(text, parse_special=True)`, by default with the begin token (and the
    [SEP] of a `WordPiece`).

    Args:
        tokenizer: a `BytePair`, `WordPiece` or `SentencePiece`.
        folder: str or path, created if necessary.
        chat_template: a `ChatTemplate` to write as well, or None.

    Raises:
        InputError: if the tokenizer has another class.
    """
    folder = pathlib.Path(folder)
    if isinstance(tokenizer, BytePair):
        rust, roles, more = _copy(tokenizer.rust), tokenizer.roles, {}
        end = []
    elif isinstance(tokenizer, WordPiece):
        rust, roles = _copy(tokenizer.rust), _word_piece_roles(tokenizer)
        more = {
            "do_lower_case": tokenizer.lowercase,
            "strip_accents": tokenizer.strip_accents,
            "tokenize_chinese_chars": tokenizer.split_chinese,
        }
        end = [roles["sep"]] if roles["sep"] else []
    elif isinstance(tokenizer, SentencePiece):
        names = sentencepiece_model.pieces(tokenizer.model)
        ids = {r: getattr(tokenizer, f"{r}_id") for r in ("bos", "eos", "pad", "unk")}
        roles = {role: names[index] if index >= 0 else None for role, index in ids.items()}
        rust, more, end = _from_sentence_piece(tokenizer), {}, []
    else:
        raise InputError(
            f"`tokenizer` must be a BytePair, WordPiece or SentencePiece, got "
            f"{type(tokenizer).__name__}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    begin = [roles.get("cls") or roles.get("bos")] if tokenizer.add_bos else []
    if rust is not None:
        _surround(rust, begin, end)
        (folder / "tokenizer.json").write_text(rust.to_str(pretty=True), "utf-8")
    if isinstance(tokenizer, WordPiece):
        text = "".join(piece + "\n" for piece in tokenizer.vocabulary)
        (folder / "vocab.txt").write_bytes(text.encode())
    if isinstance(tokenizer, SentencePiece):
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
    tokens = {f"{role}_token": name for role, name in roles.items() if name is not None}
    config = {
        **tokens,
        **more,
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    if chat_template is not None:
        config["chat_template"] = chat_template.source
    if rust is not None:
        is_bert = isinstance(tokenizer, WordPiece)
        config["tokenizer_class"] = "BertTokenizer" if is_bert else "PreTrainedTokenizerFast"
    for name, data in (("tokenizer_config", config), ("special_tokens_map", tokens)):
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, "utf-8")


def _copy(rust):
    return tokenizers.Tokenizer.from_str(rust.to_str())


def _surround(rust, begin, end):
    """Add special tokens around a text, as in BERT and Llama 3."""
    if not begin and not end:
        return
    rust.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        pair=[*begin, "$A", *end, *(f"{t}:1" for t in ([] if end else begin)), "$B:1"]
        + [f"{token}:1" for token in end],
        special_tokens=[(token, rust.token_to_id(token)) for token in {*begin, *end}],
    )


def _word_piece_roles(tokenizer):
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {name: f"[{name.upper()}]" for name in names}
    return {n: t if t in tokenizer.special_tokens else None for n, t in tokens.items()}


def _from_sentence_piece(tokenizer):
    """Convert a model to the `tokenizers` library.

    Returns None for models that are encoded as the `sentencepiece` library does.
    """
    has_flags = any(tokenizer.flags.values())
    if not tokenizer.escape and tokenizer.prefix is None and not has_flags:
        return None
    model = sentencepiece_model.exact(tokenizer.model)
    pieces, scores, control = sentencepiece_model.parts(model)
    unknown = pieces[tokenizer.unk_id]
    while pieces[-1] in tokenizer.special_tokens and pieces[-1] != unknown:
        pieces.pop()  # special tokens at the end are no part of the library's model
    scores = scores[: len(pieces)]
    rust = tokenizers.Tokenizer(
        tokenizers.models.Unigram(
            list(zip(pieces, scores, strict=True)), tokenizer.unk_id, byte_fallback=True
        )
        if sentencepiece_model.is_unigram(tokenizer.model)
        else tokenizers.models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            _merges(pieces, scores, control),
            unk_token=unknown,
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    _prepare_text(rust, tokenizer, model)
    decode = tokenizers.decoders
    escapes = [decode.Replace(b, a) for a, b in reversed(ESCAPES)] if tokenizer.escape else []
    strip = [decode.Strip(" ", 1, 0)] if tokenizer.strips_space else []
    to_text = [decode.Replace("\u2581", " "), decode.ByteFallback(), decode.Fuse()]
    rust.decoder = decode.Sequence([*to_text, *escapes, *strip])
    tokens = special_tokens_of(tokenizer.special_tokens, tokenizer.flags)
    tokens.sort(key=lambda token: token.token_id)  # the library numbers those outside its model
    rust.add_special_tokens([token.in_rust() for token in tokens])
    return rust


def _prepare_text(rust, tokenizer, model):
    """Set the normalizer and the pre-tokenizer."""
    normalizers, pre = tokenizers.normalizers, tokenizers.pre_tokenizers
    steps = [normalizers.Replace(a, b) for a, b in ESCAPES] if tokenizer.escape else []
    charsmap = sentencepiece_model.charsmap(model)
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    facts = sentencepiece_model.facts(model)
    if tokenizer.prefix is None and facts.remove_extra_whitespaces:
        steps += [normalizers.Replace(tokenizers.Regex(a), b) for a, b in EXTRA_SPACES]
        scheme = "always" if facts.add_dummy_prefix else "never"
        rust.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=False)
    elif tokenizer.prefix == "words":
        rust.pre_tokenizer = pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])
    elif tokenizer.prefix in ("always", "first"):
        rust.pre_tokenizer = pre.Metaspace(prepend_scheme=tokenizer.prefix, split=False)
    else:
        if tokenizer.prefix is None and facts.add_dummy_prefix:
            steps.append(normalizers.Prepend("\u2581"))
        steps.append(normalizers.Replace(" ", "\u2581"))
    if steps:
        rust.normalizer = normalizers.Sequence(steps)


def _merges(pieces, scores, control):
    """Return all splits of a piece into two pieces, ordered by the score of the merged piece."""
    rank = {piece: -score for piece, score in zip(pieces, scores, strict=True)}
    control = {pieces[index] for index in control if index < len(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        if piece not in control
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    ]
    return sorted(merges, key=lambda merge: rank["".join(merge)])
