"""Run the command line: `keras-llm COMMAND ...` or `python -m keras_llm`.

Options are dataclasses parsed by tyro. Heavy modules are imported only when a command needs them.
Results go to stdout, progress and errors to stderr. Invalid input prints one line to stderr and
exits with code 2.
"""

import atexit
import contextlib
import functools
import gc
import io
import pathlib
import sys

import tyro

import keras_llm
from keras_llm import interrupts
from keras_llm.commands import COMMANDS, entry_points, train
from keras_llm.commands.console import PROGRAM, import_tensorflow, quiet_tensorflow
from keras_llm.errors import ExportError, InputError, ServingError


def main(arguments=None):
    """Run a command line.

    Args:
        arguments: list of str; defaults to `sys.argv[1:]`.

    Returns:
        The exit code: 0, or 2 after an error. Invalid input prints one line to stderr and exits
        with code 2.
    """
    return _guarded(_dispatch, sys.argv[1:] if arguments is None else list(arguments))


def run_script(options, run):
    """Run a recipe directly as a script, with the error handling of the command line.

    Args:
        options: the dataclass of its options.
        run: function called with the options parsed from `sys.argv`.

    Returns:
        The exit code; see `main`.
    """

    def script():
        parsed = _read_options(options, pathlib.Path(sys.argv[0]).stem, sys.argv[1:])
        train.check_input(parsed)
        import_tensorflow()
        run(parsed)

    return _guarded(script)


def _dispatch(arguments):
    command, run = _parse(arguments)
    if command is not None:
        run(command)


def _guarded(function, *arguments):
    """Call a function; print a user-facing error as one line to stderr and return exit code 2."""
    quiet_tensorflow()  # recipes of other packages may import it
    # Avoid the final garbage collection at exit, which traverses all graphs and takes seconds.
    atexit.register(gc.freeze)
    try:
        with interrupts.noted() as seen:
            try:
                function(*arguments)
            except Exception:
                if seen:  # compiled code turned Ctrl-C into another exception
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
    """Return the parsed options and the function to run, or (None, None) after printing help."""
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
            print(_rows(entry_points.descriptions()))
            print(f"\nRun {PROGRAM} train RECIPE --help to list all options.")
            return None, None
        name, *rest = rest
        recipe = entry_points.recipe(name)
        options = _read_options(recipe.Options, f"{PROGRAM} train {name}", rest)
        return options, functools.partial(train.run, recipe)
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; known: {', '.join(['train', *COMMANDS])}.")
    command = COMMANDS[name]
    return _read_options(command.Options, f"{PROGRAM} {name}", rest), command.run


def _read_options(options, program, arguments):
    """Parse arguments with tyro; raise its boxed errors, without the title, as an InputError."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(
                options,
                prog=program,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        return _with_given(parsed, arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = []
    for line in errors.getvalue().splitlines():
        if "───" not in line:
            lines.append(line.strip("│ "))
        elif not line.startswith("╭"):
            break
    text = " ".join(lines).replace(f"Missing from {program}", "missing").replace(" (required)", "")
    raise InputError(f"{text} (see {program} --help)")


def _with_given(options, arguments):
    """Restore the options of a recipe that `--smoke` changed although they are given."""
    given = {argument.partition("=")[0].lstrip("-").replace("-", "_") for argument in arguments}
    for name, value in getattr(options, "smoke_changes", {}).items():
        if name in given:
            setattr(options, name, value)
    return options


def _help():
    rows = {"train": "Train a model with a recipe."}
    rows |= {name: command.Options.__doc__ for name, command in COMMANDS.items()}
    return (
        f"usage: {PROGRAM} COMMAND ...\n\nBuild, train and ship language models with Keras.\n\n"
        f"commands:\n{_rows(rows)}\n\nRun {PROGRAM} COMMAND --help to list the options of a "
        "command.\nInvalid input prints one line to stderr and exits with code 2."
    )


def _rows(rows):
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())


def _fail(message):
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return 2
