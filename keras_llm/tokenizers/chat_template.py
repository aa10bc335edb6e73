"""Render conversations with chat templates."""

import re
from typing import Any

from keras_llm.errors import InputError
from keras_llm.tokenizers import template_process
from keras_llm.types import JSON

# Variables of every template.
_ALWAYS = ("messages", "add_generation_prompt", "bos_token", "eos_token")
_MARKED = re.compile(r"\{%[-+]?\s*generation\b")


class ChatTemplate:
    """A Jinja template that renders a conversation as text, compatible with Hugging Face.

    Templates come with checkpoints and are not trusted: they run in Jinja's sandbox, in a child
    process with limited time and memory, see only the arguments of `render`, and cannot read files.
    A text may take 2 s of processor time, 512 MB and 16 million characters.

    Pass the rendered text to `encode` with `parse_special=True`, because the template writes
    special tokens by name. Special tokens in messages are parsed as well, so remove them from user
    input first.

    Args:
        source: str, the template.
        bos, eos: str, the values of `bos_token` and `eos_token` in the template.

    Attributes:
        source, bos, eos: the arguments.
        variables: tuple of str, the variables that the template reads.

    Raises:
        InputError: if `source` is not a valid template or exceeds the limits.

    Example:
    >>> source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    >>> template = ChatTemplate(source, eos="</s>")
    >>> template.render([{"role": "user", "content": "Hi"}])
    'user: Hi</s>'
    """

    def __init__(self, source: str, bos: str | None = "", eos: str | None = "") -> None:
        if not isinstance(source, str):
            raise InputError(f"`source` must be a str, got {type(source).__name__}.")
        self.source, self.bos, self.eos = source, bos or "", eos or ""
        answer = template_process.shared.answer(source=source)
        if "error" in answer:
            line = f", line {answer['line']}" if "line" in answer else ""
            raise InputError(f"chat template{line}: {answer['error']}.")
        self.variables = tuple(answer["variables"])

    def render(
        self, messages: list[JSON], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Render a conversation as text.

        Args:
            messages: list of dicts of JSON values, each with "role", a str, "content", and other
                keys that the template supports. The content is a str or, if the template supports
                it, a list of parts, dicts such as `{"type": "text", "text": "Hi"}`, or None in a
                message with other keys, such as "tool_calls". As in transformers, a template writes
                other values of None as "None", and nothing for keys and variables that are missing;
                unlike there, a content of None that would be written is an error.
            add_generation_prompt: bool. Whether to end with the start of an answer.
            **variables: other variables of the template, JSON values: `tools`, `enable_thinking`,
                ...

        Returns:
            str.

        Raises:
            InputError: if a message is invalid, the template does not use a variable or does not
                support the content of a message, or the template rejects the messages or exceeds
                the limits.
        """
        _check(messages)
        call = [len(messages), {"add_generation_prompt": add_generation_prompt}]
        return self._render(messages, variables, [call])[0]

    def _render(self, messages, variables, calls):
        """Render several texts; see `template_worker.py` for `calls`."""
        for name, value in variables.items():
            if value is not None and name not in self.variables:
                used = ", ".join(name for name in self.variables if name not in _ALWAYS) or "none"
                raise InputError(
                    f"the chat template does not use the variable `{name}`; it uses: {used}."
                )
        defaults = {"tools": None, "documents": None, "bos_token": self.bos, "eos_token": self.eos}

        def rendered(messages):
            answer = template_process.shared.answer(
                source=self.source, messages=messages, variables=defaults | variables, calls=calls
            )
            if "error" in answer:
                raise InputError(f"the chat template rejects the messages: {answer['error']}")
            return answer["texts"]

        texts = rendered(messages)
        for index, message in enumerate(messages):
            content = message.get("content")
            is_parts = isinstance(content, (list, tuple)) and content
            if is_parts and str(list(content)) in texts[0]:
                raise InputError(
                    f"`messages` {index}: the chat template does not support content in parts; "
                    "pass a str."
                )
        has_none = any(message.get("content") is None for message in messages)
        if has_none and "None" in texts[0]:
            filled = [{**m, "content": ""} if m.get("content") is None else m for m in messages]
            if texts[0].count("None") > rendered(filled)[0].count("None"):
                raise InputError(
                    'the chat template does not support a "content" of None; pass a str.'
                )
        return texts

    def parts(self, messages: list[JSON], **variables: Any) -> list[tuple[str, bool]]:
        """Render a conversation in parts, separating what the model generates from the rest.

        If the template has `{% generation %}` blocks, their contents are generated. Otherwise, the
        generated part of an answer is the text between its prompt, which ends with the generation
        prompt, and the end of the conversation up to that answer.

        Args:
            messages: see `render`.
            **variables: see `render`.

        Returns:
            A list of pairs: a str, and whether the model generates it. The joined strs equal
            `render(messages, add_generation_prompt=False)`.

        Raises:
            InputError: see `render`; also if there is no assistant message, or if the template
                renders a message differently when later messages follow, which requires
                `{% generation %}`.
        """
        _check(messages)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        calls = [[len(messages), {"add_generation_prompt": False}]]
        is_marked = bool(_MARKED.search(self.source))
        if not is_marked:
            for index in answers:
                if index:
                    calls.append([index, {"add_generation_prompt": True}])
                calls.append([index + 1, {"add_generation_prompt": False}])
        whole, *texts = self._render(messages, variables, calls)
        if not answers:
            raise InputError("`messages` has no message with the role assistant.")
        if is_marked:
            return self._marked_parts(whole, messages, variables)
        parts, end = [], 0
        for index in answers:
            before = texts.pop(0) if index else ""
            after = texts.pop(0)
            is_prefix = end <= len(before) and after.startswith(before) and whole.startswith(after)
            if not is_prefix:
                raise InputError(
                    "the chat template does not show what the model generates: it renders message "
                    f"{index} differently when it is neither the prompt nor the last message. Put "
                    "{% generation %} and {% endgeneration %} around the answer in the template."
                )
            parts += [(before[end:], False), (after[len(before) :], True)]
            end = len(after)
        parts.append((whole[end:], False))
        return [part for part in parts if part[0]]

    def _marked_parts(self, whole, messages, variables):
        mark = "\ue0f0"
        while mark in whole:
            mark += "\ue0f0"
        call = [len(messages), {"add_generation_prompt": False, "generation_mark": mark}]
        parts = self._render(messages, variables, [call])[0].split(mark)
        if "".join(parts) != whole or len(parts) < 3:
            raise InputError("the chat template has no {% generation %} for these messages.")
        return [(part, bool(i % 2)) for i, part in enumerate(parts) if part]


def _check(messages):
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(f"`messages` must be a non-empty list of dicts, got {messages!r}.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InputError(f"`messages` {index} must be a dict, got {type(message).__name__}.")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise InputError(f'`messages` {index}: "role" must be a str, got {role!r}.')
        others = [value for key, value in message.items() if key not in ("role", "content")]
        is_valid = isinstance(content, str) or (
            content is None and any(v is not None for v in others)
        )
        if isinstance(content, (list, tuple)):
            is_valid = all(isinstance(part, dict) for part in content)
        if not is_valid:
            raise InputError(
                f'`messages` {index}: "content" must be a str or a list of dicts, got {content!r}.'
            )
