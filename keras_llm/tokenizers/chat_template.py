"""Chat templates: from messages to the text that a model was trained on."""

import datetime
import json
import re

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from keras_llm.errors import InputError

_MARKED = re.compile(r"\{%[-+]?\s*generation\b")


class ChatTemplate:
    """A Jinja template that writes a conversation as one text, as Hugging Face's library does.

    A template comes with a checkpoint and is not trusted: it runs in Jinja's sandbox, sees
    nothing but what `render` gives it, and reads no files. Give the text to `encode` with
    `parse_special=True`: the template writes special tokens by name. So will a message that
    spells them, unless what users write is cleaned of them before.

    Args:
        source: str, the template.
        bos, eos: str, what `bos_token` and `eos_token` are in it.

    Attributes:
        source, bos, eos: as given.

    Raises:
        InputError: if `source` is not a template.

    Example:
    >>> source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    >>> template = ChatTemplate(source, eos="</s>")
    >>> template.render([{"role": "user", "content": "Hi"}])
    'user: Hi</s>'
    """

    def __init__(self, source, bos="", eos=""):
        if not isinstance(source, str):
            raise InputError(f"`source` must be a str, got {type(source).__name__}.")
        self.source, self.bos, self.eos = source, bos or "", eos or ""
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"chat template, line {error.lineno}: {error.message}") from None

    def render(self, messages, add_generation_prompt=True, **variables):
        """Write a conversation.

        Args:
            messages: list of dicts, each with "role" and "content", strs, and whatever else the
                template knows. One with "tool_calls" needs no "content".
            add_generation_prompt: bool. Whether to end with the beginning of an answer.
            **variables: what else the template knows: `tools`, `enable_thinking`, ...

        Returns:
            str.

        Raises:
            InputError: if a message lacks something, or with what the template says is wrong.
        """
        _check(messages)
        known = {"tools": None, "documents": None, "bos_token": self.bos, "eos_token": self.eos}
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **known | variables
            )
        except Exception as error:  # a template may fail in any way
            raise InputError(f"the chat template refuses the messages: {error}") from None

    def parts(self, messages, **variables):
        """Write a conversation in parts, what the model says apart from the rest.

        Where the template marks it by `{% generation %}`, that is what is inside. Otherwise it is
        what comes between the prompt of an answer, which ends with the generation prompt, and the
        conversation up to and with that answer.

        Args:
            messages: as of `render`.
            **variables: as of `render`.

        Returns:
            A list of pairs: a str, and whether the model says it. Joined, the strs are
            `render(messages, add_generation_prompt=False)`.

        Raises:
            InputError: as of `render`; if no message is the assistant's; or if the template
                writes earlier messages in another way when later ones follow, so that only marks
                could tell.
        """
        whole = self.render(messages, False, **variables)
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError("`messages` has no message of the assistant.")
        if _MARKED.search(self.source):
            return self._marked_parts(whole, messages, variables)
        parts, end = [], 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], **variables) if index else ""
            after = self.render(messages[: index + 1], False, **variables)
            known = end <= len(before) and after.startswith(before) and whole.startswith(after)
            if not known:
                raise InputError(
                    "the chat template does not tell what the model says: it writes message "
                    f"{index} in another way when it is not the prompt or the end. Put "
                    "{% generation %} and {% endgeneration %} around it in the template."
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
            raise InputError("the chat template has no {% generation %} around these messages.")
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
    """`{% generation %}` marks what the model says; it writes what is inside."""

    tags = frozenset(["generation"])

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
    # Jinja's own escapes for HTML.
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
