"""The command line: `keras-llm COMMAND ...`, also `python -m keras_llm`.

Options are dataclasses read by tyro. Nothing heavy is imported before a command needs it. Results
go to stdout, progress and errors to stderr; what a user can mend is one line and exit code 2.
"""

import atexit
import contextlib
import gc
import importlib
import io
import pathlib
import sys

import tyro

import keras_llm
from keras_llm import interrupts
from keras_llm.commands import COMMANDS, train
from keras_llm.commands.console import PROGRAM, import_tensorflow
from keras_llm.errors import ExportError, InputError, ServingError
from keras_llm.recipes import RECIPES


def main(arguments=None):
    """Run a command line.

    Args:
        arguments: list of str; defaults to `sys.argv[1:]`.

    Returns:
        The exit code: 0, or 2 with one line on stderr that says what to mend.
    """
    return _guarded(_dispatch, sys.argv[1:] if arguments is None else list(arguments))


def run_script(options, run):
    """Run a script of `keras_llm.recipes` by itself, with the manners of the command line.

    Args:
        options: the dataclass of its options.
        run: function of one, called with what was read from `sys.argv`.

    Returns:
        The exit code, as from `main`.
    """

    def script():
        read = _read_options(options, pathlib.Path(sys.argv[0]).stem, sys.argv[1:])
        import_tensorflow()
        run(read)

    return _guarded(script)


def _dispatch(arguments):
    command, run = _parse(arguments)
    if command is not None:
        run(command)


def _guarded(function, *arguments):
    """Call, and turn what a user can mend into one line and exit code 2."""
    # At its end Python would look through all graphs for what refers to itself, for seconds.
    atexit.register(gc.freeze)
    try:
        with interrupts.noted() as seen:
            try:
                function(*arguments)
            except Exception:
                if seen:  # Ctrl-C inside a call of compiled code, which made an error of it
                    raise KeyboardInterrupt from None
                raise
    except (InputError, ExportError, ServingError) as error:
        return _fail(str(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}")
    except KeyboardInterrupt:
        return _fail("interrupted")
    return 0


def _parse(arguments):
    """A command line -> the options and the function to run with them; `None, None` after help."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return None, None
    if arguments[0] == "--version":
        print(keras_llm.__version__)
        return None, None
    name, *rest = arguments
    if name == "train":
        if not rest or rest[0] in ("-h", "--help"):
            print(f"usage: {PROGRAM} train RECIPE --out FOLDER [options]\n\nrecipes:")
            print(_rows(RECIPES))
            print(f"\n{PROGRAM} train RECIPE --help shows every option.")
            return None, None
        name, *rest = rest
        if name not in RECIPES:
            raise InputError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}.")
        options = importlib.import_module(f"keras_llm.recipes.{name}").Options
        return _read_options(options, f"{PROGRAM} train {name}", rest), train.run
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; known: {', '.join(['train', *COMMANDS])}.")
    command = COMMANDS[name]
    return _read_options(command.Options, f"{PROGRAM} {name}", rest), command.run


def _read_options(options, program, arguments):
    """tyro's reading of the arguments, its boxed errors turned into one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                options,
                prog=program,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    title, lines = "", []
    for line in errors.getvalue().splitlines():
        if line.startswith("╭"):
            title = line.strip("╭╮─ ")
        elif "───" in line:
            break
        else:
            lines.append(line.strip("│ "))
    raise InputError(f"{program}: {title}: {' '.join(lines)} (see {program} --help)")


def _help():
    rows = {"train": "Train a model by recipe."}
    rows |= {name: command.Options.__doc__ for name, command in COMMANDS.items()}
    return (
        f"usage: {PROGRAM} COMMAND ...\n\nBuild, train and ship language models with Keras.\n\n"
        f"commands:\n{_rows(rows)}\n\n{PROGRAM} COMMAND --help shows every option of one."
    )


def _rows(rows):
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())


def _fail(message):
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return 2
