"""Compile regular expressions to automata over UTF-8 bytes."""

import collections
import dataclasses
import functools
import re
from re import _compiler, _parser  # private, but `re` has no public access to its parser

import numpy as np

from keras_llm.errors import InputError
from keras_llm.tokenizers.sentencepiece import ESCAPES

_MOST_STATES = 20_000  # tables of this size take seconds and hundreds of megabytes
_ACCEPT = (-1, -1)
_WHOLE = -1  # the child node that completes a character
_BLOCKS = (  # first and last code point, lead byte of code point 0, number of bytes after it
    (0, 0x7F, 0, 0),
    (0x80, 0x7FF, 0xC0, 1),
    (0x800, 0xD7FF, 0xE0, 2),
    (0xE000, 0xFFFF, 0xE0, 2),
    (0x10000, 0x10FFFF, 0xF0, 3),
)
_SINGLE = (_parser.LITERAL, _parser.NOT_LITERAL, _parser.ANY, _parser.IN)
_BEGINNING = (_parser.AT_BEGINNING, _parser.AT_BEGINNING_STRING)
_END = (_parser.AT_END, _parser.AT_END_STRING)
_NAMES = {
    _parser.ASSERT: "look-around",
    _parser.ASSERT_NOT: "look-around",
    _parser.AT: 'a word boundary, or a multiline "^" or "$"',
    _parser.ATOMIC_GROUP: "an atomic group",
    _parser.GROUPREF: "a back reference",
    _parser.GROUPREF_EXISTS: "a back reference",
    _parser.POSSESSIVE_REPEAT: "a possessive quantifier",
}


@dataclasses.dataclass(frozen=True)
class ByteAutomaton:
    """A deterministic automaton over bytes.

    Attributes:
        table: int32 array (S, 256), the next state; -1 if a byte is forbidden.
        start: int.
        accepting: bool array (S,).
    """

    table: np.ndarray
    start: int
    accepting: np.ndarray


def of_pattern(pattern: str) -> ByteAutomaton:
    """Compile a pattern to an automaton of the UTF-8 texts that `re.fullmatch` matches.

    Python's own parser reads the pattern, and its matcher determines the characters of a class, so
    both behave as in `re`. "$" only matches at the very end, not before a final line break. Some
    states may not lead to an accepting state.

    Raises:
        InputError: if the pattern is invalid, is not regular, or needs too many states.
    """
    try:
        tree = _parser.parse(pattern)
        parts = _Parts()
        entry = parts.sequence(tree, tree.state.flags, parts.add("accept"))
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"`pattern` {short(pattern)} is invalid: {error}.") from None
    except _Impossible as reason:
        raise InputError(f"`pattern` {short(pattern)} {reason}.") from None
    # A state is the set of possible next steps: nodes inside a character, with the part after it.
    start = parts.expected(entry, at_beginning=True)
    number, todo, rows = {start: 0}, collections.deque([start]), []
    while todo:
        row = np.full(256, -1, np.int32)
        for byte, state in _moves(parts, todo.popleft()):
            if state not in number:
                number[state] = len(number)
                todo.append(state)
            row[byte] = number[state]
        rows.append(row)
        if len(number) > _MOST_STATES:
            raise InputError(
                f"`pattern` {short(pattern)} needs more than {_MOST_STATES} states; counted "
                "repetitions multiply them."
            )
    return ByteAutomaton(np.stack(rows), 0, np.array([_ACCEPT in state for state in number]))


def short(pattern: str) -> str:
    """Shorten a pattern for error messages."""
    return repr(pattern if len(pattern) <= 100 else pattern[:97] + "...")


def _moves(parts, state):
    """Yield the bytes that a state reads, in order, with the next state of each."""
    read, targets = collections.defaultdict(list), {}
    for node, after in state - {_ACCEPT}:
        for byte, child in parts.trees.nodes[node]:
            read[byte].append((child, after))
    for byte in sorted(read):
        places = tuple(read[byte])
        if places not in targets:
            items = (
                parts.expected(after) if child == _WHOLE else {(child, after)}
                for child, after in places
            )
            targets[places] = frozenset().union(*items)
        yield byte, targets[places]


class _Impossible(Exception):
    pass


class _Parts:
    """The parts of a pattern, each a state of a nondeterministic automaton over characters.

    A part is ("read", characters, next), ("any", list of next), ("beginning", next),
    ("end", next) or ("accept",); `next` is the index of a part.
    """

    def __init__(self):
        self.trees = _Trees()
        self._parts = []
        self._expected = {}

    def add(self, *part):
        if len(self._parts) >= _MOST_STATES:
            raise _Impossible(
                f"has more than {_MOST_STATES} parts after expanding its counted repetitions"
            )
        self._parts.append(part)
        return len(self._parts) - 1

    def sequence(self, nodes, flags, after):
        """Add the nodes of Python's parser, followed by `after`; return the index of the first."""
        for node in reversed(list(nodes)):
            after = self._node(node, flags, after)
        return after

    def _node(self, node, flags, after):
        kind, value = node
        if kind in _SINGLE:
            return self.add("read", self.trees.root(_characters(node, flags)), after)
        if kind is _parser.BRANCH:
            return self.add("any", [self.sequence(branch, flags, after) for branch in value[1]])
        if kind is _parser.SUBPATTERN:
            _, added, removed, nodes = value
            return self.sequence(nodes, (flags | added) & ~removed, after)
        if kind in (_parser.MAX_REPEAT, _parser.MIN_REPEAT):
            return self._repeated(*value, flags, after)
        if kind is _parser.AT and not flags & re.MULTILINE and value in _BEGINNING + _END:
            return self.add("beginning" if value in _BEGINNING else "end", after)
        raise _Impossible(f"has {_NAMES.get(kind, kind)}, which an automaton cannot represent")

    def _repeated(self, least, most, nodes, flags, after):
        if most is _parser.MAXREPEAT:
            loop = self.add("any", [after])
            self._parts[loop][1].append(self.sequence(nodes, flags, loop))
            after = loop
        else:
            end = after
            for _ in range(most - least):
                after = self.add("any", [end, self.sequence(nodes, flags, after)])
        for _ in range(least):
            after = self.sequence(nodes, flags, after)
        return after

    def expected(self, part, at_beginning=False):
        """Return what a part may read next.

        This is a frozenset of (characters, next), with `_ACCEPT` if the text may end.
        """
        if (part, at_beginning) not in self._expected:
            items, todo, seen = set(), [(part, False)], set()
            while todo:
                item = at, ended = todo.pop()
                if item in seen:
                    continue
                seen.add(item)
                kind, *values = self._parts[at]
                if kind == "accept":
                    items.add(_ACCEPT)
                elif kind == "read":
                    items |= set() if ended else {tuple(values)}
                elif kind == "any":
                    todo += [(after, ended) for after in values[0]]
                elif kind == "end" or at_beginning:
                    todo.append((values[0], ended or kind == "end"))
            self._expected[part, at_beginning] = frozenset(items)
        return self._expected[part, at_beginning]


class _Trees:
    """Trees of UTF-8 bytes that represent sets of characters.

    Attributes:
        nodes: list; each node is a tuple of (byte, child), where `child` is the index of a node or
            `_WHOLE`. Equal nodes are shared.
    """

    def __init__(self):
        self.nodes = []
        self._ids = {}
        self._tails = {}

    def root(self, ranges):
        """Return the root node of a set of characters, a tuple of (first, last) code points."""
        edges = []
        for first, last, lead, count in _BLOCKS:
            inside = [(max(a, first), min(b, last)) for a, b in ranges if a <= last and b >= first]
            edges += self._edges(inside, lead, count)
        return self._node(edges)

    def _edges(self, ranges, lead, count):
        """Return the edges of numbers with a first digit from byte `lead` on and `count` more."""
        width, parts = 64**count, collections.defaultdict(list)
        for first, last in ranges:
            for part in range(first // width, last // width + 1):
                base = part * width
                parts[part].append((max(first - base, 0), min(last - base, width - 1)))
        return [(lead + part, self._tail(tuple(r), count)) for part, r in parts.items()]

    def _tail(self, ranges, count):
        if not count:
            return _WHOLE
        if (ranges, count) not in self._tails:
            self._tails[ranges, count] = self._node(self._edges(ranges, 0x80, count - 1))
        return self._tails[ranges, count]

    def _node(self, edges):
        node = tuple(edges)
        if node not in self._ids:
            self._ids[node] = len(self.nodes)
            self.nodes.append(node)
        return self._ids[node]


def _characters(node, flags):
    """Return the characters that a parser node matches, a tuple of (first, last)."""
    kind, value = node
    if kind is _parser.LITERAL and not flags & re.IGNORECASE:
        return ((value, value),)
    return _matched(kind, tuple(value) if kind is _parser.IN else value, flags)


@functools.lru_cache(maxsize=256)
def _matched(kind, value, flags):
    tree = _parser.parse("", flags)
    one = _parser.SubPattern(tree.state, [(kind, list(value) if kind is _parser.IN else value)])
    tree.append((_parser.MAX_REPEAT, (1, _parser.MAXREPEAT, one)))
    runs = _compiler.compile(tree, flags).finditer(_every_character())
    # The string omits the surrogates, so later characters are shifted by 0x800.
    ends = [(run.start(), run.end() - 1) for run in runs]
    return tuple((a + 0x800 * (a >= 0xD800), b + 0x800 * (b >= 0xD800)) for a, b in ends)


@functools.cache
def _every_character():
    return "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


def of_escaped(automaton: ByteAutomaton) -> ByteAutomaton:
    """Return the automaton of the escaped forms of the texts.

    Where a text continues with a character that is escaped, its escaped form continues with the
    escape character and a letter. The bytes of the escape therefore pass through new states, from
    which other characters with the same first bytes continue as before.
    """
    table = automaton.table
    escape = ESCAPES[0][0].encode()
    targets = [_follow(table, character.encode()) for character, _ in ESCAPES]
    before = [_follow(table, escape[:count]) for count in range(1, len(escape))]
    letters = [ord(escaped[-1]) for _, escaped in ESCAPES]
    rows, chains = list(table), {}
    for state in np.flatnonzero(np.max(targets, axis=0) >= 0):
        key = (before[0][state], *(target[state] for target in targets))
        if key not in chains:
            chains[key] = len(rows)
            for byte, states in zip(escape[1:], before, strict=True):
                row = _row(table, states[state])
                row[byte] = len(rows) + 1
                rows.append(row)
            row = _row(table, -1)
            row[letters] = key[1:]
            rows.append(row)
        rows[state] = rows[state].copy()
        rows[state][escape[0]] = chains[key]
    accepting = np.zeros(len(rows), bool)
    accepting[: len(table)] = automaton.accepting
    return ByteAutomaton(np.stack(rows), automaton.start, accepting)


def _follow(table, data):
    """Return the state after reading some bytes from every state, (S,)."""
    states = np.arange(len(table))
    for byte in data:
        states = np.where(states < 0, -1, table[states, byte])
    return states


def _row(table, state):
    return table[state].copy() if state >= 0 else np.full(256, -1, np.int32)
