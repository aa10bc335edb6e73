"""Answer held-out conversations and texts greedily, and compare with the references."""

import re

_PROMPT_WORDS = 64  # most words of the beginning of a text that is continued
_MOST_TOKENS = 256  # of an answer, if the references are longer


def question(row):
    """Return what is asked of the model, and the reference.

    These are the messages before the last answer of a conversation, and that answer; or the first
    half of a text, at most 64 words, and the rest.
    """
    if isinstance(row, str):
        words = row.split()
        half = min(_PROMPT_WORDS, max(1, len(words) // 2))
        return " ".join(words[:half]), " ".join(words[half:])
    last = max(i for i, message in enumerate(row) if message["role"] == "assistant")
    return row[:last], row[last]["content"]


def shown(asked):
    """Return the text of what is asked."""
    return asked if isinstance(asked, str) else asked[-1]["content"]


def choose(task, held_out, options):
    """Return the rows that are answered, and set `answer_tokens` if it is None.

    These are the first `answers` rows for which prompt and answer fit into the model.

    Args:
        task: a `TextGeneration`.
        held_out: list of conversations or texts.
        options: options with `answers` and `answer_tokens`.

    Returns:
        A list of pairs (what is asked, reference), see `question`.
    """

    def tokens(text):
        return len(task.tokenizer.encode_prompt(text, parse_special=True))

    pairs = [question(row) for row in held_out[: options.answers]]
    max_length = task.model.config.max_length
    if options.answer_tokens is None:
        longest = max(tokens(reference) for _, reference in pairs)
        options.answer_tokens = min(_MOST_TOKENS, longest + 8, max_length // 2)
    most = max_length - options.answer_tokens
    prompts = [asked if isinstance(asked, str) else task.render(asked) for asked, _ in pairs]
    return [pair for pair, text in zip(pairs, prompts, strict=True) if tokens(text) <= most]


def answer(task, pairs, options):
    """Return the greedy answers, and the shares of equal ones and of those in the format.

    Args:
        task: a `TextGeneration`.
        pairs: list from `choose`.
        options: options with `answer_tokens` and `pattern`.

    Returns:
        A list of str; and a dict with `equal_answers`, for conversations, and
        `answers_in_format`, with a pattern.
    """
    settings = {"max_new_tokens": options.answer_tokens, "temperature": 0.0}
    answers, shares = [], {}
    for asked, _ in pairs:
        answers.append((task if isinstance(asked, str) else task.chat)(asked, **settings).strip())
    if pairs and not isinstance(pairs[0][0], str):
        references = [reference.strip() for _, reference in pairs]
        equal = [one == other for one, other in zip(answers, references, strict=True)]
        shares["equal_answers"] = sum(equal) / len(equal)
    if pairs and options.pattern is not None:
        matches = [re.fullmatch(options.pattern, text, re.S) for text in answers]
        shares["answers_in_format"] = sum(map(bool, matches)) / len(matches)
    return answers, shares
