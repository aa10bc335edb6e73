"""The command line: `keras-llm COMMAND ...`, also `python -m keras_llm`.

Options are dataclasses read by tyro. Nothing heavy is imported before a command needs it. Results
go to stdout, progress and errors to stderr; what a user can mend is one line and exit code 2.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Literal

import tyro

import keras_llm
from keras_llm.errors import ExportError, InputError
from keras_llm.quiet import silent_stderr
from keras_llm.recipes import RECIPES

_PROGRAM = "keras-llm"
_Positional = tyro.conf.Positional


@dataclasses.dataclass
class Generate:
    """Continue a text with a trained model; prints the new text alone."""

    run: _Positional[str]
    """Folder of a trained model."""
    prompt: _Positional[str]
    """The text to continue."""
    max_new_tokens: int = 64
    """The most tokens to generate."""
    temperature: float = 1.0
    """0 takes the most likely token each time."""
    top_k: int = 0
    """Choose among this many most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Choose among the fewest tokens that hold this much probability; 1 is off."""
    seed: int | None = None
    """The same seed gives the same text."""
    stream: bool = False
    """Print the text as it comes."""
    json: bool = False
    """Print one JSON object."""


@dataclasses.dataclass
class Evaluate:
    """Measure a trained model on its held-out documents, or on other text."""

    run: _Positional[str]
    """Folder of a trained model."""
    data: str | None = None
    """Text or JSONL file, or a folder of them, instead of the held-out documents."""
    json: bool = False
    """Print one JSON object."""


@dataclasses.dataclass
class Export:
    """Write a trained model for a server or a device, and prove that it does the same."""

    run: _Positional[str]
    """Folder of a trained model."""
    to: Literal["saved_model", "litert"]
    """saved_model for TensorFlow Serving, litert for a .tflite file."""
    out: str
    """Folder of the served model, or path of the .tflite file."""
    version: int | None = None
    """Version of the served model (saved_model only; 1 if not given)."""
    quantization: Literal["int8", "float16"] | None = None
    """Weights in 8 or 16 bits (litert only)."""
    overwrite: bool = False
    """Replace what is there."""
    json: bool = False
    """Print the whole report as JSON."""


@dataclasses.dataclass
class Import:
    """Turn a checkpoint from elsewhere into a model folder."""

    source: _Positional[Literal["gguf", "hugging_face"]]
    """gguf for a GGUF file, hugging_face for a folder with config.json and safetensors."""
    path: _Positional[str]
    """The file or folder."""
    out: str
    """Folder of the new model."""
    overwrite: bool = False
    """Replace what is there."""
    json: bool = False
    """Print one JSON object."""


@dataclasses.dataclass
class Inspect:
    """Layers, parameters and memory of a trained model or a preset."""

    model: _Positional[str]
    """Folder of a trained model, or name of a preset."""
    json: bool = False
    """Print one JSON object."""


@dataclasses.dataclass
class Recipes:
    """The recipes and the corpora they can be trained on."""

    json: bool = False
    """Print one JSON object."""


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
        _import_tensorflow()
        run(read)

    return _guarded(script)


def _dispatch(arguments):
    command, run = _parse(arguments)
    if command is not None:
        run(command)


def _guarded(function, *arguments):
    """Call, and turn what a user can mend into one line and exit code 2."""
    try:
        function(*arguments)
    except (InputError, ExportError) as error:
        return _fail(str(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}")
    except KeyboardInterrupt:
        return _fail("interrupted")
    return 0


def _train(options):
    recipe = importlib.import_module(type(options).__module__)
    _import_tensorflow()
    metrics = recipe.run(options)
    if _as_json(options, metrics):
        return
    held_out, unigram = metrics["held_out"], metrics["unigram"]
    _table(
        ["held out", "model", "unigram"],
        [
            [name, f"{held_out[name]:.3f}", f"{unigram[name]:.3f}"]
            for name in ("perplexity", "bits_per_byte", "nats_per_token")
        ]
        + [["accuracy", f"{held_out['accuracy']:.3f}", ""]],
    )
    print(f'next: {_PROGRAM} generate {options.out} "{options.prompt}" --stream')


def _generate(options):
    _import_tensorflow()
    task = keras_llm.load(options.run)
    settings = {
        name: getattr(options, name)
        for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    }
    if options.json:
        result = task(options.prompt, **settings, return_details=True)
        _as_json(options, {"prompt": options.prompt, **dataclasses.asdict(result)})
    elif options.stream:
        for piece in task.stream(options.prompt, **settings):
            print(piece, end="", flush=True)
        print()
    else:
        print(task(options.prompt, **settings))


def _evaluate(options):
    _import_tensorflow()
    from keras_llm.files import atomic_file
    from keras_llm.tasks import read_config

    name = read_config(options.run)["metadata"].get("recipe")
    if name is None and options.data:
        name = "text_generation"
    if name not in RECIPES:
        raise InputError(f"{options.run} was not trained by a recipe; give --data.")
    recipe = importlib.import_module(f"keras_llm.recipes.{name}")
    measures = recipe.evaluate(options.run, options.data)
    path = pathlib.Path(options.run) / "metrics.json"
    metrics = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if options.data:
        metrics.setdefault("other_text", {})[options.data] = measures
    else:
        metrics["held_out"] = measures
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    if not _as_json(options, measures):
        _table(["measure", "value"], [[k, f"{v:,.4g}"] for k, v in measures.items()])


def _export(options):
    if options.to == "saved_model" and options.quantization:
        raise InputError("--quantization is for --to litert.")
    if options.to == "litert" and options.version is not None:
        raise InputError("--version is for --to saved_model.")
    _import_tensorflow()
    from keras_llm import export

    task = keras_llm.load(options.run)
    with silent_stderr():  # SentencePiece tells that it does not normalise
        task.tokenizer.graph_resources()
    if options.to == "saved_model":
        version = 1 if options.version is None else options.version
        report = export.saved_model(task, options.out, version, options.overwrite)
    else:
        report = export.litert(task, options.out, options.quantization, overwrite=options.overwrite)
    if _as_json(options, report):
        return
    rows = [["bytes", f"{report['bytes']['total']:,}"]]
    for name, value in report["parity"].items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:.4g}"
        rows.append([name.replace("_", " "), shown])
    rows += [["tokens per second", f"{report['tokens_per_second']:,.0f}"]]
    rows += [["signatures", ", ".join(report["signatures"])]]
    if report.get("non_core_ops"):
        rows += [["ops outside TensorFlow's core", ", ".join(report["non_core_ops"])]]
    _table([f"{options.out}", "value"], rows)


def _import(options):
    from keras_llm.files import check_free

    check_free(options.out, options.overwrite)  # before the minutes that a large model takes
    _import_tensorflow()
    from keras_llm import checkpoints

    read = {"gguf": checkpoints.from_gguf, "hugging_face": checkpoints.from_hugging_face}
    task = read[options.source](options.path)
    task.save(options.out, options.overwrite)
    config, kind = task.model.config, type(task).__name__
    report = {
        "out": options.out,
        "task": kind,
        "source": task.metadata["source"],
        "parameters": task.model.count_params(),
        "vocabulary_size": config.vocabulary_size,
        "max_length": config.max_length,
        "chat_template": "chat_template" in task.metadata,
    }
    if _as_json(options, report):
        return
    shown = {True: "yes", False: "no"}
    rows = [
        [name.replace("_", " "), shown[v] if isinstance(v, bool) else f"{v:,}"]
        for name, v in report.items()
        if name not in ("out", "task", "source")
    ]
    _table([f"{options.out}", ""], [["task", kind], ["source", report["source"]], *rows])
    if kind == "TextGeneration":
        print(f'next: {_PROGRAM} generate {options.out} "Once upon a time" --stream')


def _inspect(options):
    _import_tensorflow()
    from keras_llm import models
    from keras_llm.tasks import read_config

    if pathlib.Path(options.model).exists():
        summary = models.summarize(read_config(options.model))
    elif options.model in models.presets():
        summary = models.summarize(models.preset(options.model))
    else:
        raise InputError(
            f"{options.model} is neither a model folder nor a preset; "
            f"{models.similar_presets(options.model)}."
        )
    if not _as_json(options, summary):
        _table(
            ["layer", "class", "parameters"],
            [[r["name"], r["class"], f"{r['parameters']:,}"] for r in summary["layers"]],
        )
        _table(
            ["in all", "value"],
            [
                [name.replace("_", " "), f"{summary[name]:,}"]
                for name in summary
                if name not in ("config", "layers")
            ],
        )


def _recipes(options):
    from keras_llm.recipes.corpora import CORPORA

    corpora = {name: corpus.description for name, corpus in CORPORA.items()}
    if not _as_json(options, {"recipes": RECIPES, "corpora": corpora}):
        _table(["recipe", "what it does"], [list(row) for row in RECIPES.items()])
        _table(["corpus", "what it is"], [list(row) for row in corpora.items()])


@dataclasses.dataclass(frozen=True)
class _Command:
    options: type
    run: Callable


_COMMANDS = {
    "generate": _Command(Generate, _generate),
    "evaluate": _Command(Evaluate, _evaluate),
    "export": _Command(Export, _export),
    "import": _Command(Import, _import),
    "inspect": _Command(Inspect, _inspect),
    "recipes": _Command(Recipes, _recipes),
}


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
            print(f"usage: {_PROGRAM} train RECIPE --out FOLDER [options]\n\nrecipes:")
            print(_rows(RECIPES))
            print(f"\n{_PROGRAM} train RECIPE --help shows every option.")
            return None, None
        name, *rest = rest
        if name not in RECIPES:
            raise InputError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}.")
        options = importlib.import_module(f"keras_llm.recipes.{name}").Options
        return _read_options(options, f"{_PROGRAM} train {name}", rest), _train
    if name not in _COMMANDS:
        raise InputError(f"unknown command {name!r}; known: {', '.join(['train', *_COMMANDS])}.")
    command = _COMMANDS[name]
    return _read_options(command.options, f"{_PROGRAM} {name}", rest), command.run


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
    rows |= {name: command.options.__doc__ for name, command in _COMMANDS.items()}
    return (
        f"usage: {_PROGRAM} COMMAND ...\n\nBuild, train and ship language models with Keras.\n\n"
        f"commands:\n{_rows(rows)}\n\n{_PROGRAM} COMMAND --help shows every option of one."
    )


def _rows(rows):
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())


def _fail(message):
    print(f"{_PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _as_json(options, value):
    """Print as JSON if that was asked; whether it was."""
    if options.json:
        print(json.dumps(value, ensure_ascii=False))
    return options.json


def _table(head, rows):
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(*head, box=rich.box.SIMPLE)
    for row in rows:
        table.add_row(*map(str, row))
    rich.console.Console().print(table, markup=False)


def _import_tensorflow():
    """Import TensorFlow with its fastest CPU kernels, and without its start-up messages."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silent_stderr():
        importlib.import_module("tensorflow")
