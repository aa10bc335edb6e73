"""Convert the tokenizers of KerasHub."""

from typing import Any

from keras_llm.errors import InputError
from keras_llm.tokenizers import BytePair, SentencePiece, Tokenizer, sentencepiece_model
from keras_llm.tokenizers.pre_tokenizers import PRE_TOKENIZERS

# How the original tokenizer of each class splits texts into words. KerasHub does not split texts
# outside of `tf.data`; the ids are the same unless a merge crosses a border between words.
_SPLITS = {
    "GPT2Tokenizer": "gpt2",
    "OPTTokenizer": "gpt2",
    "GPTNeoXTokenizer": "gpt2",
    "Llama3Tokenizer": "llama3",
    "SmolLM3Tokenizer": "llama3",
    "QwenTokenizer": "qwen",
    "Qwen3Tokenizer": "qwen",
    "Qwen3MoeTokenizer": "qwen",
}


def read_tokenizer(tokenizer: Any) -> tuple[Tokenizer, list[int]]:
    """Convert a KerasHub tokenizer.

    Args:
        tokenizer: a SentencePiece or byte-level BPE tokenizer of a causal language model.

    Returns:
        A `Tokenizer` whose prompts begin with the start token, if KerasHub's do; and the tokens at
        which KerasHub ends a text, a list of ints.

    Raises:
        InputError: if the tokenizer is of another class, or an option is not supported.
    """
    _refuse_unless(tokenizer, sequence_length=None)
    if getattr(tokenizer, "proto", None):
        converted = _sentence_piece(tokenizer)
    elif getattr(tokenizer, "merges", None) is not None:
        converted = _byte_pair(tokenizer)
    else:
        raise _unsupported(tokenizer)
    start = tokenizer.start_token_id
    if converted.bos_id != (-1 if start is None else start):
        raise InputError(
            f"`start_token` of the {type(tokenizer).__name__} is {tokenizer.start_token!r}, which "
            "must be a control piece of its model."
        )
    ends = [tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", None)]
    return converted, [index for index in ends if index is not None]


def _byte_pair(tokenizer):
    _refuse_unless(tokenizer, add_prefix_space=False)
    vocabulary, special = dict(tokenizer.vocabulary), tokenizer.unsplittable_tokens
    return BytePair(
        vocabulary,
        [merge for merge in map(str, tokenizer.merges) if not merge.startswith("#version")],
        _split(tokenizer),
        sorted(special, key=lambda token: vocabulary.get(token, -1)),
        bos=tokenizer.start_token,
        eos=tokenizer.end_token,
        pad=getattr(tokenizer, "pad_token", None),
        add_bos=tokenizer.start_token is not None,
    )


def _split(tokenizer):
    """Return the name of the rule that splits texts into words."""
    pattern = getattr(tokenizer, "split_pattern", None)
    if pattern is not None:
        names = [name for name, rule in PRE_TOKENIZERS.items() if rule.pattern == pattern]
        if names:
            return names[0]
        raise InputError(f"`split_pattern` of the tokenizer is {pattern!r}, which is unknown.")
    if type(tokenizer).__name__ not in _SPLITS:
        raise _unsupported(tokenizer)
    return _SPLITS[type(tokenizer).__name__]


def _sentence_piece(tokenizer):
    _refuse_unless(tokenizer, add_bos=False, add_eos=False)
    roles = {
        "bos": tokenizer.start_token,
        "eos": tokenizer.end_token,
        "pad": getattr(tokenizer, "pad_token", None),
    }
    model = sentencepiece_model.completed(tokenizer.proto, roles=roles)
    return SentencePiece(model, escape=False)


def _refuse_unless(tokenizer, **accepted):
    for name, value in accepted.items():
        found = getattr(tokenizer, name, value)
        if found != value:
            raise InputError(
                f"`{name}` of the tokenizer is {found!r}; only {value!r} is supported."
            )


def _unsupported(tokenizer):
    return InputError(
        f"the tokenizer is a {type(tokenizer)}; supported are SentencePiece tokenizers and "
        f"{', '.join(_SPLITS)}. Pass another one as `tokenizer`."
    )
