"""What is left out of a training, counted by reason."""

import collections


def clean_rows(rows, unique=None, may_be_empty=()):
    """Leave out rows that are empty or have come before.

    Args:
        rows: list of tuples of str.
        unique: int, or tuple of ints, or None. The place in a row that no two rows may share, e.g.
            that of the text of (text, label), or several together; None compares whole rows.
        may_be_empty: places in a row where nothing may stand.

    Returns:
        The rows that are left, a list in the same order, and a dict from the reason to how many
        were left out: "empty", "repeated", and "repeated with another value" for those whose
        `unique` part has come with other parts.

    Example:
    >>> clean_rows([("a", "1"), ("a", "1"), ("a", "2"), (" ", "1"), ("b", "2")], unique=0)
    ([('a', '1'), ('b', '2')], {'repeated': 1, 'repeated with another value': 1, 'empty': 1})
    """
    seen, kept, dropped = {}, [], collections.Counter()
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


def without_contamination(rows, held_out, by=0):
    """Leave out training rows that are held out too.

    Args:
        rows: list of tuples of str, for training.
        held_out: list of tuples of str.
        by: int. The place in a row that is compared, letter case and white space aside.

    Returns:
        The rows that are left, and how many were not: a dict like that of `clean_rows`.
    """
    known = {_plain(row[by]) for row in held_out}
    kept = [row for row in rows if _plain(row[by]) not in known]
    count = len(rows) - len(kept)
    return kept, {"held out too": count} if count else {}


def _plain(text):
    return " ".join(text.casefold().split())
