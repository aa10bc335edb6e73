"""Filter training rows and count the dropped ones by reason."""

import collections
from collections.abc import Collection, Iterable
from typing import Any


def clean_rows(
    rows: Iterable[tuple[str, ...]],
    unique: int | tuple[int, ...] | None = None,
    may_be_empty: Collection[int] = (),
) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """Drop rows that are empty or repeated.

    Args:
        rows: list of tuples of str.
        unique: int, tuple of ints, or None. The column that no two rows may share, e.g. that of
            the text in (text, label), or several columns together; None compares whole rows.
        may_be_empty: columns that may be empty.

    Returns:
        The remaining rows, a list in the same order, and a dict of the number of dropped rows by
        reason: "empty", "repeated", and "repeated with another value" for rows whose `unique`
        columns occurred with other values in the remaining columns.

    Example:
    >>> clean_rows([("a", "1"), ("a", "1"), ("a", "2"), (" ", "1"), ("b", "2")], unique=0)
    ([('a', '1'), ('b', '2')], {'repeated': 1, 'repeated with another value': 1, 'empty': 1})
    """
    seen: dict[Any, tuple[str, ...]] = {}
    kept: list[tuple[str, ...]] = []
    dropped: collections.Counter[str] = collections.Counter()
    for row in rows:
        places = range(len(row)) if unique is None else unique
        key = row[places] if isinstance(places, int) else tuple(row[place] for place in places)
        if not all(part.strip() for i, part in enumerate(row) if i not in may_be_empty):
            dropped["empty"] += 1
        elif key not in seen:
            seen[key] = row
            kept.append(row)
        else:
            same = seen[key] == row
            dropped["repeated" if same else "repeated with another value"] += 1
    return kept, dict(dropped)


def without_contamination(
    rows: list[tuple[str, ...]], held_out: Iterable[tuple[str, ...]], by: int = 0
) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """Drop training rows that also occur in the held-out rows.

    Args:
        rows: list of tuples of str, for training.
        held_out: list of tuples of str.
        by: int. The column to compare, ignoring letter case and white space.

    Returns:
        The remaining rows, and a dict of the number of dropped rows like that of `clean_rows`.
    """
    held_out_texts = {_plain(row[by]) for row in held_out}
    kept = [row for row in rows if _plain(row[by]) not in held_out_texts]
    count = len(rows) - len(kept)
    return kept, {"held out too": count} if count else {}


def _plain(text):
    return " ".join(text.casefold().split())
