"""Render chat templates in a process of its own, with limited time and memory.

`template_process.py` runs this file as a script, which imports only Jinja, with two arguments: the
limits of processor time for one text, in seconds, and of memory, in bytes. It reads one request
per line, JSON, from standard input and writes one answer per line to standard output.
"""

import contextlib
import datetime
import functools
import json
import signal
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

_MOST_CHARACTERS = 2**24  # of one text
_MOST_ERROR_CHARACTERS = 300


class _Generation(jinja2.ext.Extension):
    """The `{% generation %}` tag, which marks generated text and renders its contents."""

    tags: Any = frozenset(["generation"])

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = jinja2.nodes.Output([jinja2.nodes.Name("generation_mark", "load")], lineno=line)
        return jinja2.nodes.Scope([mark, *body, mark], lineno=line)


@functools.cache
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


@functools.lru_cache(maxsize=16)
def _compiled(source):
    """Return a template, and the variables that it reads."""
    environment = _environment()
    tree = environment.parse(source)
    read = jinja2.meta.find_undeclared_variables(tree)
    return environment.from_string(source), sorted(read - {"generation_mark"})


def _answer(seconds, source, messages=(), variables=None, calls=()):
    """Return the answer to a request.

    Args:
        seconds: float, the limit of processor time for one text.
        source: str, the template.
        messages: list of dicts.
        variables: dict of the variables of all texts.
        calls: list with one list for each text: the number of messages, and a dict of variables.
    """
    template, read = _compiled(source)
    texts = []
    for count, own in calls:
        _set_time(seconds)
        text = template.render(messages=messages[:count], **{**variables, **own})
        text.encode()  # raises an error for surrogates
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"it renders more than {_MOST_CHARACTERS} characters")
        texts.append(text)
    return {"texts": texts, "variables": read}


def _error(error):
    """Return the answer for an exception."""
    if isinstance(error, MemoryError):
        return {"error": "it needs too much memory", "ends": True}
    if isinstance(error, UnicodeEncodeError):
        return {"error": "it has characters that are not Unicode (surrogates)"}
    if isinstance(error, RecursionError):
        return {"error": "it is too deeply nested"}
    text = error.message if isinstance(error, jinja2.TemplateSyntaxError) else str(error)
    text = (text or "")[:_MOST_ERROR_CHARACTERS].encode(errors="replace").decode()
    answer = {"error": " ".join(text.split()) or type(error).__name__}
    if isinstance(error, jinja2.TemplateSyntaxError):
        answer["line"] = error.lineno
    return answer


def _set_time(seconds):
    """End the process by SIGPROF after this much processor time; 0 for no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(size):
    with contextlib.suppress(ImportError):
        import resource

        for name, most in (("AS", size), ("FSIZE", 0), ("CORE", 0)):
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (most, most))


def main(seconds: float, size: int) -> None:
    """Answer the requests of standard input until its end."""
    _limit_memory(size)
    answers = sys.stdout.buffer
    for line in sys.stdin.buffer:
        _set_time(seconds)
        try:
            answer = json.dumps(_answer(seconds, **json.loads(line)))
        except BaseException as error:  # a template may raise any exception
            answer = json.dumps(_error(error))
        _set_time(0)
        answers.write(answer.encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
