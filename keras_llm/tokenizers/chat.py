"""Chat templates: from messages to the text that a model was trained on."""

import datetime
import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from keras_llm.errors import InputError


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
        return jinja2.nodes.Scope(body, lineno=line)


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
