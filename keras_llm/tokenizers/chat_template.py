"""Render conversations with chat templates."""

import datetime
import json
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from keras_llm.errors import InputError
from keras_llm.types import JSON

_MARKED = re.compile(r"\{%[-+]?\s*generation\b")


class ChatTemplate:
    """A Jinja template that renders a conversation as text, compatible with Hugging Face.

    Templates come with checkpoints and are not trusted: they run in Jinja's sandbox, see only the
    arguments of `render`, and cannot read files. Pass the rendered text to `encode` with
    `parse_special=True`, because the template writes special tokens by name. Special tokens in
    messages are parsed as well, so remove them from user input first.

    Args:
        source: str, the template.
        bos, eos: str, the values of `bos_token` and `eos_token` in the template.

    Attributes:
        source, bos, eos: the arguments.

    Raises:
        InputError: if `source` is not a valid template.

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
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"chat template, line {error.lineno}: {error.message}") from None

    def render(
        self, messages: list[JSON], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Render a conversation as text.

        Args:
            messages: list of dicts, each with "role" and "content", strs, and other keys that the
                template supports. A message with "tool_calls" needs no "content".
            add_generation_prompt: bool. Whether to end with the start of an answer.
            **variables: other variables of the template: `tools`, `enable_thinking`, ...

        Returns:
            str.

        Raises:
            InputError: if a message is invalid, or the template rejects the messages.
        """
        _check(messages)
        defaults = {"tools": None, "documents": None, "bos_token": self.bos, "eos_token": self.eos}
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **defaults | variables,
            )
        except Exception as error:  # a template may raise any exception
            raise InputError(f"the chat template rejects the messages: {error}") from None

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
        whole = self.render(messages, False, **variables)
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError("`messages` has no message with the role assistant.")
        if _MARKED.search(self.source):
            return self._marked_parts(whole, messages, variables)
        parts, end = [], 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], **variables) if index else ""
            after = self.render(messages[: index + 1], False, **variables)
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
        marked = self.render(messages, False, generation_mark=mark, **variables)
        parts = marked.split(mark)
        if "".join(parts) != whole or len(parts) < 3:
            raise InputError("the chat template has no {% generation %} for these messages.")
        return [(part, bool(i % 2)) for i, part in enumerate(parts) if part]


def _check(messages):
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(f"`messages` must be a non-empty list of dicts, got {messages!r}.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InputError(f"`messages` {index} must be a dict, got {type(message).__name__}.")
        for key in ("role", "content"):
            value = message.get(key)
            if not isinstance(value, str) and not (key == "content" and "tool_calls" in message):
                raise InputError(f'`messages` {index}: "{key}" must be a str, got {value!r}.')


class _Generation(jinja2.ext.Extension):
    """The `{% generation %}` tag, which marks generated text and renders its contents."""

    tags: Any = frozenset(["generation"])

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = jinja2.nodes.Output([jinja2.nodes.Name("generation_mark", "load")], lineno=line)
        return jinja2.nodes.Scope([mark, *body, mark], lineno=line)


def _environment():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes for HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message):
    raise jinja2.TemplateError(message)


def _now(pattern):
    return datetime.datetime.now().strftime(pattern)
