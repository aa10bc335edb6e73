"""Read conversations and preferences from JSON, with errors that name the file and the line."""

import json
import pathlib
from typing import Any, NamedTuple

from keras_llm.data.readers.named import is_name, named_records
from keras_llm.data.readers.records import kind_of, read_json_lines
from keras_llm.data.readers.values import checked_text
from keras_llm.errors import InputError
from keras_llm.files import CONVERSATION_SUFFIXES, read_utf8
from keras_llm.types import JSON, PathLike

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
# Fields that change what a model reads or learns, and are not supported.
_OF_RECORD = ("tools", "functions", "documents", "chat_template_kwargs")
_OF_MESSAGE = ("tool_calls", "function_call", "reasoning_content", "thinking")
_WEIGHTS = ("weight", "train", "training")


class Preference(NamedTuple):
    """Two answers to a conversation.

    Attributes:
        messages: list of dicts with `role` and `content`, up to the answer.
        chosen: str, the preferred answer.
        rejected: str, the other answer.
    """

    messages: list[JSON]
    chosen: str
    rejected: str


def read_conversations(path: PathLike) -> list[list[JSON]]:
    """Read conversations from `.jsonl` (one object per line) or `.json` (a list of objects).

    Each object has one of three formats:

    - `{"messages": [{"role": ..., "content": ...}, ...]}`
    - ShareGPT's `{"conversations": [{"from": ..., "value": ...}, ...]}`
    - Alpaca's `{"instruction": ..., "input": ..., "output": ...}`, where `input`, which is appended
      to the instruction, and `history`, a list of earlier [question, answer] pairs, are optional.

    All may have a `system` text, which becomes the first message. Roles are system, user, assistant
    and tool; human is an alias of user, gpt and function_call of assistant, and observation of
    tool. Names may end in `.gz`. Named datasets, see `read_records`, have the same fields as
    columns.

    A message with `"weight": 0` (or `"train": false` or `"training": false`) is context: the loss
    does not cover it. Other fields than these are ignored if they do not change what the model
    reads and learns; those that would, such as `tools` and `tool_calls`, are rejected unless they
    are empty or false.

    Args:
        path: str or path.

    Returns:
        A list of conversations, each a list of dicts with `role` and `content`, strs, and
        `weight`, 0, for messages that are only context.

    Raises:
        InputError: if a line (in `.json` files, a record) is not JSON, has another format, an
            unsupported field, an unknown role, an empty message, no message, or no assistant
            message to learn after a user message; the message names the file and the line or
            record. Also if there is no conversation.
    """
    conversations = []
    for where, record in _records(path):
        messages = conversation(record, where)
        answers = [message for message in messages if message["role"] == "assistant"]
        if not answers:
            raise InputError(f"{where}: there is no assistant message.")
        if not any(is_learned(message) for message in answers):
            raise InputError(f"{where}: all assistant messages have the weight 0.")
        conversations.append(messages)
    return conversations


def read_preferences(path: PathLike) -> list[Preference]:
    """Read pairs of answers from `.jsonl` or `.json`.

    An object is a conversation as in `read_conversations`, without the last answer, with
    `chosen` and `rejected`: each a str or a message.

    Args:
        path: str or path.

    Returns:
        A list of `Preference`.

    Raises:
        InputError: see `read_conversations`; also if an answer is missing or empty, or both are
            equal.
    """
    return [preference(record, where) for where, record in _records(path)]


def is_learned(message: JSON) -> bool:
    """Return whether a message counts in the loss: an answer of the assistant, without weight 0."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def conversation(record: Any, where: str) -> list[JSON]:
    """Convert an object to a list of messages.

    Args:
        record: a JSON value, see `read_conversations`.
        where: str, the start of error messages.

    Raises:
        InputError: if it is not a conversation; the message starts with `where`.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object.")
    _check_fields(record, _OF_RECORD, where)
    if "messages" in record:
        messages = _turns(record["messages"], "role", "content", where)
    elif "conversations" in record:
        messages = _turns(record["conversations"], "from", "value", where)
    elif "instruction" in record:
        messages = _alpaca(record, where)
    else:
        raise InputError(
            f"{where}: expected 'messages', 'conversations' or 'instruction', but it has "
            f"{', '.join(map(repr, record)) or 'no fields'}."
        )
    if record.get("system"):
        if messages and messages[0]["role"] == "system":
            raise InputError(f"{where}: 'system' and a first message with the role system.")
        messages.insert(0, {"role": "system", "content": _text(record["system"], "system", where)})
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if not spoken:
        raise InputError(f"{where}: the conversation is empty.")
    if spoken[0] != "user":
        raise InputError(f"{where}: the first message has the role {spoken[0]!r}, not 'user'.")
    return messages


def preference(record: Any, where: str) -> Preference:
    """Convert an object to a `Preference`; arguments and errors are those of `conversation`."""
    messages = conversation(record, where)
    if messages[-1]["role"] not in ("user", "tool"):
        raise InputError(f"{where}: the conversation ends with the {messages[-1]['role']}.")
    answers = [_answer(record, name, where) for name in ("chosen", "rejected")]
    if answers[0] == answers[1]:
        raise InputError(f"{where}: 'chosen' and 'rejected' are equal.")
    return Preference(messages, *answers)


def _records(path):
    """Return pairs of the location of a record, for errors, and the record."""
    if is_name(path):
        records = enumerate(named_records(path), 1)
        located = [(f"{path}, row {number}", _without_none(record)) for number, record in records]
    else:
        located = _records_of_file(pathlib.Path(path))
    if not located:
        raise InputError(f"{path} has no conversation.")
    return located


def _records_of_file(path):
    if kind_of(path) not in CONVERSATION_SUFFIXES:
        suffixes = ", ".join(CONVERSATION_SUFFIXES)
        raise InputError(f"{path}: the name must end in {suffixes}, or .gz.")
    if kind_of(path) == ".jsonl":
        return [(f"{path}, line {n}", record) for n, record in read_json_lines(path)]
    try:
        records = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    except RecursionError:
        raise InputError(f"{path}: the JSON is nested too deeply.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{path}: not JSON: {error}.") from None
    if not isinstance(records, list):
        raise InputError(f"{path}: not a list of JSON objects.")
    return [(f"{path}, record {n}", record) for n, record in enumerate(records, 1)]


def _without_none(record):
    """Drop missing values, which rows of a dataset store as None."""
    return {name: value for name, value in record.items() if value is not None}


def _turns(turns, role_key, text_key, where):
    if not isinstance(turns, list):
        raise InputError(f"{where}: the conversation is not a list.")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise InputError(f"{where}: message {number} is not a JSON object.")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in _ROLES:
            raise InputError(
                f"{where}: message {number} has the unknown role {role!r}; supported roles are "
                f"{', '.join(_ROLES)}."
            )
        _check_fields(turn, _OF_MESSAGE, f"{where}: message {number}")
        content = _text(turn.get(text_key), f"{text_key} of message {number}", where)
        message = {"role": _ROLES[role], "content": content}
        if not _weight(turn, f"{where}: message {number}"):
            message["weight"] = 0
        messages.append(message)
    return messages


def _check_fields(record, unsupported, where):
    """Raise InputError for a field whose omission would change the conversation."""
    for name in unsupported:
        value = record.get(name)
        if isinstance(value, str):
            value = value.strip() not in ("", "[]", "{}", "null")
        if value:
            raise InputError(
                f"{where}: {name!r} is not supported; put it into the text of a message."
            )


def _weight(turn, where):
    for name in _WEIGHTS:
        value = turn.get(name)
        if value is not None and value not in (0, 1):
            raise InputError(f"{where}: {name!r} must be 0 or 1, got {value!r}.")
        if value is not None:
            return int(value)
    return 1


def _alpaca(record, where):
    history = record.get("history") or []
    pairs = [pair for pair in history if isinstance(pair, list) and len(pair) == 2]
    if len(pairs) != len(history):
        raise InputError(f"{where}: 'history' is not a list of [question, answer].")
    request = _text(record["instruction"], "instruction", where)
    if record.get("input"):
        request += "\n" + _text(record["input"], "input", where)
    spoken = [_text(part, "history", where) for pair in pairs for part in pair] + [request]
    if "output" in record:
        spoken.append(_text(record["output"], "output", where))
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(spoken)]


def _answer(record, name, where):
    value = record.get(name)
    if isinstance(value, dict):
        value = value.get("value", value.get("content"))
    return _text(value, name, where)


def _text(value, name, where):
    if not isinstance(value, str):
        raise InputError(f"{where}: no text in {name!r}.")
    if not value.strip():
        raise InputError(f"{where}: {name!r} is empty.")
    return checked_text(where, name, value)
