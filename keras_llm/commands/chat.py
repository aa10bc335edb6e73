"""Chat with a model: `keras-llm chat`."""

import dataclasses
import sys

import tyro

from keras_llm.commands.console import as_json, import_tensorflow, kind_of, load_task, task_kind
from keras_llm.commands.sampling import SamplingOptions
from keras_llm.errors import InputError


@dataclasses.dataclass
class Options(SamplingOptions):
    """Chat with a trained model; /reset starts over, /exit or Ctrl-D quits."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model, a checkpoint, or a name such as hf:OWNER/NAME."""
    system: str | None = None
    """A system message."""
    json: bool = False
    """Print each answer as one JSON object instead of streaming it."""


def run(options):
    _check(options, task_kind(options.run))
    settings = options.settings()
    import_tensorflow()
    task = load_task(options.run)
    _check(options, kind_of(task))
    conversation = task.conversation(options.system)
    for line in _lines():
        if line == "/reset":
            conversation = task.conversation(options.system)
            continue
        try:
            if options.json:
                answer = conversation.say(line, **settings)
                as_json(options, {"role": "assistant", "content": answer})
                sys.stdout.flush()
                continue
            for piece in conversation.stream(line, **settings):
                print(piece, end="", flush=True)
            print()
        except InputError as error:
            if not sys.stdin.isatty():
                raise
            print(error, file=sys.stderr)


def _check(options, kind):
    if kind not in ("TextGeneration", "RankedChat", None):
        raise InputError(f"{options.run} is a {kind}, which does not support chat.")


def _lines():
    """Yield the lines that the user enters."""
    prompt = ""
    if sys.stdin.isatty():
        import readline  # noqa: F401, enables line editing in `input`

        prompt = "> "
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line:
            yield line
