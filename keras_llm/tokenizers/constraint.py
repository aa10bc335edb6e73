"""Compile regular expressions and JSON schemas to automata over a tokenizer's tokens."""

import dataclasses
import functools

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from keras_llm.errors import InputError
from keras_llm.tokenizers.byte_automaton import of_escaped, of_pattern, short
from keras_llm.tokenizers.byte_pair import CHARACTERS, BytePair
from keras_llm.tokenizers.json_schema import json_schema_regex
from keras_llm.tokenizers.sentencepiece import SentencePiece
from keras_llm.types import JSON


@dataclasses.dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """The allowed tokens and the next state for every state of a constraint.

    Tokens with the same transitions share a column, so that the table has S x C entries instead
    of S x V. An accepting state is reachable from every state. The end token is allowed only in
    accepting states and does not change the state.

    Attributes:
        next_state: int32 array (S, C); -1 if the tokens of a class are forbidden.
        token_class: int32 array (V,), the column of each token.
        start: int, the state before the first token.
        accepting: bool array (S,), whether the text may end.
    """

    next_state: np.ndarray
    token_class: np.ndarray
    start: int
    accepting: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.next_state, self.token_class, self.accepting):
            array.setflags(write=False)

    def allowed(self, state: int | np.ndarray) -> np.ndarray:
        """Return which tokens may come next.

        Args:
            state: int or int array (B,), >= 0.

        Returns:
            Bool array (V,) or (B, V).
        """
        return self.next_state[_checked(state)][..., self.token_class] >= 0

    def advance(self, state: int | np.ndarray, token: int | np.ndarray) -> np.int32 | np.ndarray:
        """Return the state after a token.

        Args:
            state: int or int array (B,), >= 0.
            token: int or int array (B,), token ids.

        Returns:
            Int32 scalar or array (B,); -1 if the token is forbidden.
        """
        return self.next_state[_checked(state), self.token_class[_checked(token)]]


def constrain_regex(pattern: str, tokenizer: BytePair | SentencePiece) -> TokenAutomaton:
    """Return the automaton of the token sequences whose text matches a regular expression.

    The whole text of the generated tokens, as decoded by `tokenizer.decode`, must match. Tokens may
    end inside a character. Special tokens and tokens that no text contains are forbidden. Results
    are cached by pattern and tokenizer.

    Args:
        pattern: str, as for Python's `re`, without look-around, back references, word
            boundaries, atomic groups and possessive quantifiers; "$" only matches at the very
            end. Counted repetitions multiply states: 500 of "." take 4,001.
        tokenizer: a `BytePair` or `SentencePiece` with an end token.

    Returns:
        A `TokenAutomaton`.

    Raises:
        InputError: if the pattern is invalid, cannot be represented as an automaton or is too
            large; if no token sequence matches; if the tokenizer has no end token or its tokens
            do not determine the text.

    Example:
    >>> tok = BytePair.train(["yes or no"], vocabulary_size=262)
    >>> automaton = constrain_regex("yes|no", tok)
    >>> state = automaton.advance(automaton.start, tok.encode("n")[0])
    >>> [tok.token(i) for i in automaton.allowed(state).nonzero()[0]]
    ['o']

    Reference:
        Willard and Louf, 2023, "Efficient Guided Generation for Large Language Models".
    """
    if not isinstance(pattern, str):
        raise InputError(f"`pattern` must be a str, got {type(pattern).__name__}.")
    return _constrained(pattern, tokenizer)


def constrain_json_schema(
    schema: JSON | str, tokenizer: BytePair | SentencePiece
) -> TokenAutomaton:
    """Return the automaton of the token sequences whose text is JSON that satisfies a schema.

    Args:
        schema: dict, or str of JSON; the supported keywords are those of
            `keras_llm.tokenizers.json_schema.json_schema_regex`.
        tokenizer: a `BytePair` or `SentencePiece` with an end token.

    Returns:
        A `TokenAutomaton`.

    Raises:
        InputError: if the schema is invalid; the message names the location and the problem. See
            also `constrain_regex`.
    """
    return _constrained(json_schema_regex(schema), tokenizer)


@functools.lru_cache(maxsize=32)
def _constrained(pattern, tokenizer):
    spelling = _spelling(tokenizer)
    if tokenizer.eos_id < 0:
        raise InputError("`tokenizer` has no end token, so that a text could never end.")
    automaton = of_pattern(pattern)
    if spelling.escaped:
        automaton = of_escaped(automaton)
    return _of_tokens(automaton, spelling, tokenizer.eos_id, pattern)


def _checked(index):
    if np.min(index) < 0:
        raise InputError(f"`state` and `token` must be >= 0, got {index}.")
    return index


# Token texts


@dataclasses.dataclass(frozen=True)
class _Spelling:
    """The text of each token of a tokenizer.

    Attributes:
        tokens: list of bytes, None for tokens that are never allowed.
        first: the same at the start of a text, where a token may have less text; None if there is
            no difference.
        repeats: bool. Whether the token after an empty first token is also a first token.
        escaped: bool. Whether the tokens contain text as escaped by `SentencePiece`.
    """

    tokens: list[bytes | None]
    first: list[bytes | None] | None = None
    repeats: bool = False
    escaped: bool = False


@functools.lru_cache(maxsize=4)
def _spelling(tokenizer):
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
    silent, tokens = _silent(tokenizer), []
    for token, index in tokenizer.vocabulary.items():
        never = index in silent or token in tokenizer.special_tokens
        spelled = None if never else [byte_of.get(character) for character in token]
        tokens.append(None if spelled is None or None in spelled else bytes(spelled))
    return _Spelling(tokens)


def _of_sentence_piece(tokenizer):
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    silent, tokens, first = _silent(tokenizer), [], []
    for index, piece in enumerate(model.pieces):
        text = piece.piece.replace("\u2581", " ")
        begins = text
        if index in silent or piece.type not in (kinds.NORMAL, kinds.USER_DEFINED, kinds.BYTE):
            spelled = None
        elif piece.type == kinds.BYTE:
            spelled = bytes([int(piece.piece[3:5], 16)])  # <0x0A>
        else:
            spelled, begins = text.encode(), text.removeprefix(" ")
        tokens.append(spelled)
        first.append(spelled if begins == text else begins.encode())
    spec = model.normalizer_spec
    # Decoding removes the space that encoding puts before a text.
    strips = spec.add_dummy_prefix or spec.remove_extra_whitespaces
    return _Spelling(
        tokens, first if strips else None, spec.remove_extra_whitespaces, tokenizer.escape
    )


# Token transitions


def _of_tokens(automaton, spelling, stop_id, pattern):
    moves, classes, start, accepting = _moves(automaton, spelling)
    kept = _useful(moves, start, accepting)
    if not kept[start]:
        raise InputError(
            f"`pattern` {short(pattern)}: no token sequence of `tokenizer` matches it."
        )
    number = np.full(len(kept) + 1, -1, np.int32)  # the last entry maps -1 to -1
    number[:-1][kept] = np.arange(kept.sum())
    columns, inverse = np.unique(number[moves[:, kept]], axis=0, return_inverse=True)
    accepting = accepting[kept]
    stop = np.where(accepting, np.arange(len(accepting)), -1)
    token_class = inverse.reshape(-1)[classes].astype(np.int32)
    token_class[stop_id] = len(columns)
    next_state = np.ascontiguousarray(np.vstack([columns, stop]).T.astype(np.int32))
    return TokenAutomaton(next_state, token_class, int(number[start]), accepting)


def _moves(automaton, spelling):
    """Compute the state that each token leads to from every state.

    Returns:
        moves (C, S), classes (V,) with each token's row in `moves`, start, and accepting (S,).
    """
    effects = _Effects(automaton.table)
    ids = np.array([effects.of(spelled) for spelled in spelling.tokens])
    start, accepting = automaton.start, automaton.accepting
    if spelling.first is None:
        used, classes = np.unique(ids, return_inverse=True)
        return effects.vectors(used), classes, start, accepting
    # Tokens at the start of a text are read in a separate state.
    begin = len(accepting)
    first = np.array([effects.of(spelled) for spelled in spelling.first])
    used, classes = np.unique(first, return_inverse=True)
    targets = effects.vectors(used)[:, start][classes.reshape(-1)]
    targets[[spelled == b"" for spelled in spelling.first]] = begin if spelling.repeats else start
    used, classes = np.unique(np.stack([ids, targets]), axis=1, return_inverse=True)
    moves = np.column_stack([effects.vectors(used[0]), used[1]])
    return moves, classes.reshape(-1), begin, np.append(accepting, accepting[start])


class _Effects:
    """The effects of tokens, each an array (S,) of the state that a token leads to.

    Few effects are distinct, so each is computed only once: from the effect of the token without
    its last byte, and with bytes that behave the same in all states treated as one.
    """

    _DEAD = 0

    def __init__(self, table):
        columns, kinds = np.unique(table, axis=1, return_inverse=True)
        self._kinds = bytes(kinds.reshape(-1).tolist())
        # The last entry maps -1 to -1.
        self._columns = np.pad(columns.T, ((0, 0), (0, 1)), constant_values=-1).astype(np.int32)
        identity = np.arange(len(table), dtype=np.int32)
        self._vectors = [np.full_like(identity, -1), identity]
        self._ids = {vector.tobytes(): i for i, vector in enumerate(self._vectors)}
        self._next = {}

    def of(self, spelled):
        """Return the id of the effect of some bytes; None is a token that is never allowed."""
        if spelled is None:
            return self._DEAD
        effect = 1
        for kind in spelled.translate(self._kinds):
            after = self._next.get((effect, kind))
            effect = self._extended(effect, kind) if after is None else after
            if effect == self._DEAD:
                break
        return effect

    def vectors(self, ids):
        """Return the effects with the ids (C,), int32 (C, S)."""
        return np.stack([self._vectors[i] for i in ids])

    def _extended(self, effect, kind):
        vector = self._columns[kind][self._vectors[effect]]
        after = self._ids.setdefault(vector.tobytes(), len(self._vectors))
        if after == len(self._vectors):
            self._vectors.append(vector)
        self._next[effect, kind] = after
        return after


def _useful(moves, start, accepting):
    """Return the states on a path from the start to an accepting state, bool (S,)."""
    following = [np.unique(moves[:, state]) for state in range(len(accepting))]
    following = [targets[targets >= 0].tolist() for targets in following]
    leading = [[] for _ in following]
    for state, targets in enumerate(following):
        for target in targets:
            leading[target].append(state)
    alive = _reached(leading, np.flatnonzero(accepting).tolist())
    following = [[t for t in targets if alive[t]] for targets in following]
    return alive & _reached(following, [start])


def _reached(neighbors, seeds):
    seen = np.zeros(len(neighbors), bool)
    seen[seeds] = True
    todo = list(seeds)
    while todo:
        for state in neighbors[todo.pop()]:
            if not seen[state]:
                seen[state] = True
                todo.append(state)
    return seen
