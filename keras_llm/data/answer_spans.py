"""Find answers in their contexts."""

import re


def locate_answers(
    rows: list[tuple[str, str, str]],
) -> tuple[list[tuple[str, str, str]], dict[str, int]]:
    """Keep the rows whose answer occurs in their context, and those without an answer.

    An answer is matched as whole words, ignoring letter case and white space.

    Args:
        rows: list of (question, context, answer), "" for no answer.

    Returns:
        A list of the same rows with the answer as it occurs in the context; and a dict of the
        number of dropped rows by reason.
    """
    spans = [find_answer(context, answer) for _, context, answer in rows]
    kept = [
        (question, context, context[slice(*span)])
        for (question, context, _), span in zip(rows, spans, strict=True)
        if span is not None
    ]
    count = len(rows) - len(kept)
    return kept, {"answer not in the context": count} if count else {}


def find_answer(context: str, answer: str) -> tuple[int, int] | None:
    """Find the first occurrence of an answer in a context.

    Args:
        context, answer: str.

    Returns:
        A pair of ints, the start and the end (exclusive) in characters; (0, 0) for no answer; None
        if the answer does not occur.
    """
    letters = "".join(answer.split())
    if not letters:
        return 0, 0
    pattern = r"\s*".join(map(re.escape, letters))
    if letters[0].isalnum():
        pattern = r"(?<!\w)" + pattern
    if letters[-1].isalnum():
        pattern += r"(?!\w)"
    match = re.search(pattern, context, re.IGNORECASE)
    return match.span() if match else None
