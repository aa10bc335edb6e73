"""Return the bytes of text that each token of a tokenizer stands for."""

import functools

from sentencepiece import sentencepiece_model_pb2

from keras_llm.errors import InputError
from keras_llm.tokenizers.base import Tokenizer
from keras_llm.tokenizers.byte_pair import CHARACTERS, BytePair
from keras_llm.tokenizers.escapes import ESCAPES
from keras_llm.tokenizers.sentencepiece import SentencePiece
from keras_llm.types import Spelling


@functools.lru_cache(maxsize=4)
def spelling(tokenizer: Tokenizer) -> Spelling:
    """Return the `Spelling` of a tokenizer's tokens.

    The text that `tokenizer.decode` returns for tokens with a spelling is their joined bytes. The
    result is cached by tokenizer.

    Args:
        tokenizer: a `BytePair` or `SentencePiece`.

    Raises:
        InputError: if the text of a token depends on the tokens around it, as in `WordPiece`.
    """
    if isinstance(tokenizer, BytePair):
        return _of_byte_pair(tokenizer)
    if isinstance(tokenizer, SentencePiece):
        return _of_sentence_piece(tokenizer)
    raise InputError(
        f"`tokenizer` is a {type(tokenizer).__name__}, whose tokens do not determine the text; "
        "only BytePair and SentencePiece are supported."
    )


def _silent(tokenizer):
    return {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}


def _of_byte_pair(tokenizer):
    byte_of = {character: byte for byte, character in enumerate(CHARACTERS)}
    silent = _silent(tokenizer) | set(tokenizer.special_tokens.values())
    tokens = [None] * tokenizer.vocabulary_size
    for token, index in tokenizer.vocabulary.items():
        if index not in silent and all(character in byte_of for character in token):
            tokens[index] = bytes(byte_of[character] for character in token)
    return Spelling(tokens, tokens)


def _of_sentence_piece(tokenizer):
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    strips = tokenizer.strips_space
    # An escape takes two characters, which two tokens or byte pieces can spell together. Tokens
    # with a part of one have no spelling.
    escape = ESCAPES[0][0] if tokenizer.escape else ""
    silent, tokens, first = _silent(tokenizer), [], []
    for index, piece in enumerate(model.pieces):
        spelled = begins = None
        if index not in silent and piece.type == kinds.BYTE:
            byte = bytes([int(piece.piece[3:5], 16)])  # <0x0A>
            spelled = begins = None if escape and byte == escape.encode()[:1] else byte
        elif index not in silent and piece.type in (kinds.NORMAL, kinds.USER_DEFINED):
            text = _unescaped(piece.piece.replace("\u2581", " "), escape)
            if text is not None:
                spelled = text.encode()
                begins = spelled.removeprefix(b" ") if strips else spelled
        tokens.append(spelled)
        first.append(begins)
    return Spelling(tokens, first, model.normalizer_spec.remove_extra_whitespaces)


def _unescaped(text, escape):
    """Return a piece's text without its escapes; None if it has a part of an escape."""
    if not escape or escape not in text:
        return text
    rest = text
    for _, escaped in ESCAPES:
        rest = rest.replace(escaped, "")
    if escape in rest:
        return None
    for character, escaped in reversed(ESCAPES):
        text = text.replace(escaped, character)
    return text
