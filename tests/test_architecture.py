"""The house of the library: who may import whom, and examples that run."""

import ast
import configparser
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import warnings

import pytest

import keras_llm
from keras_llm import keras_internals

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
LIBRARY = ROOT / "keras_llm"

# From the top down; a room imports what is in it and in those below it.
ROOMS = [
    {"recipes", "cli", "commands", "__main__"},
    {"export"},
    {"checkpoints"},
    {"tasks"},
    {"data"},
    {"tokenizers"},
    {"training"},
    {"generation"},
    {"models"},
    {"layers"},
    {
        *("errors", "files", "interrupts", "keras_internals", "sampling_settings", "silence"),
        *("span_search", "types"),
    },
]
ONLY_KERAS = ("layers", "models", "generation", "training")


def imports(path):
    """The absolute module names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    for folder, name in (
        (LIBRARY, None),
        (ROOT / "export", "export"),
        (ROOT / "recipes", "recipes"),
    ):
        for path in sorted(folder.rglob("*.py")):
            room = name or path.relative_to(LIBRARY).parts[0].removesuffix(".py")
            if room != "__init__":
                yield pytest.param(path, room, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize("path, room", modules())
def test_imports_go_down(path, room):
    level = next(i for i, rooms in enumerate(ROOMS) if room in rooms)
    side = ROOMS[level] if level in (0, len(ROOMS) - 1) else {room}
    allowed = side.union(*ROOMS[level + 1 :], keras_llm._NAMES, {"__version__"})
    rooms = {n.split(".")[1] for n in imports(path) if n.startswith("keras_llm.")}
    if path.relative_to(ROOT) == pathlib.Path("keras_llm/tasks/base.py"):
        allowed = allowed | {"export"}  # inside `Task.export`
    assert rooms <= allowed, f"{path} imports {sorted(rooms - allowed)}"


@pytest.mark.parametrize("path, room", modules())
def test_only_keras_below_the_files_named_for_a_backend(path, room):
    own = {"tensorflow": "tensorflow", "tensorboard": "tensorflow", "jax": "jax"}.get(path.stem)
    if room in ONLY_KERAS:
        found = {name.split(".")[0] for name in imports(path)}
        assert not found & {"tensorflow", "tensorflow_text", "jax", "torch"} - {own}, path


KERAS_INTERNALS = LIBRARY / "keras_internals.py"


def private_names(path):
    """The private names of objects that a file reads, sets or, as methods, defines."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = node.attr if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.ClassDef):
            yield from (part.name for part in node.body if isinstance(part, ast.FunctionDef))
        if name.startswith("_") and not name.startswith("__"):
            yield name


@pytest.mark.parametrize("path, room", modules())
def test_private_names_of_keras_are_in_one_file(path, room):
    if path == KERAS_INTERNALS:
        return
    assert not [name for name in imports(path) if name.startswith("keras.src")], path
    of_keras = {name for name in private_names(KERAS_INTERNALS) if name.startswith("_")}
    assert "_flatten_layers" in of_keras and "_maybe_symbolic_build" in of_keras
    assert not of_keras & set(private_names(path)), path


@pytest.mark.parametrize("version, warns", [("3.15.9", False), ("3.16.0", True), ("4.0", True)])
def test_an_untested_version_of_keras_is_named(version, warns):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        keras_internals.check_version(version)
    assert [version in str(warning.message) for warning in found] == [True] * warns


def public_modules():
    yield "keras_llm"
    for package in ("keras_llm", "keras_llm.export", "keras_llm.recipes"):
        for info in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
            # A backend's file needs the backend, which only TensorFlow is sure to be.
            if not info.name.endswith(("__main__", ".jax")):
                yield info.name


@pytest.mark.parametrize("name", sorted(set(public_modules())))
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failures == 0


def test_every_package_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY.rglob("__init__.py")}
    for room in ("export", "recipes"):
        folders = [path.parent.relative_to(ROOT) for path in (ROOT / room).rglob("__init__.py")]
        found |= {".".join(["keras_llm", *folder.parts]) for folder in folders}
    assert listed == found


def test_every_public_name_is_there_and_documented():
    for room in sorted(keras_llm._SUBMODULES - {"recipes"}):
        module = importlib.import_module(f"keras_llm.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            assert value.__doc__, f"keras_llm.{room}.{name} has no docstring"
    for name in keras_llm.__all__:
        assert getattr(keras_llm, name) is not None
    with pytest.raises(AttributeError, match="keras_llm"):
        keras_llm.nonsense  # noqa: B018


def public_functions():
    """The public functions and methods that the rooms export, with their names."""
    for room in sorted(keras_llm._SUBMODULES - {"recipes"}):
        module = importlib.import_module(f"keras_llm.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{room}.{name}", value
            elif inspect.isclass(value) and value.__module__.startswith("keras_llm"):
                for method, function in vars(value).items():
                    function = getattr(function, "__func__", function)
                    is_public = not method.startswith("_") or method in ("__init__", "__call__")
                    of_ours = getattr(function, "__module__", "").startswith("keras_llm")
                    if inspect.isfunction(function) and is_public and of_ours:
                        yield f"{room}.{name}.{method}", function


def test_public_signatures_have_type_hints():
    missing = []
    for name, function in public_functions():
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        if name.count(".") == 2:
            parameters = parameters[1:]  # self or cls
        has_return = signature.return_annotation is not inspect.Signature.empty
        if any(p.annotation is p.empty for p in parameters) or not has_return:
            missing.append(name)
    assert missing == []


# What nobody outside this repository calls so; the field's word is in the style guide.
INVENTED = ("CharacterPlaces", "_Watched", "device_parity", "decoder_proof", "flat_graph")
INVENTED_IN_PROSE = (
    "cannot be had",
    "to be had",
    "time of grace",
    "what stands there",
    "torn and left aside",
    "as if nothing had happened",
    "a user can mend",
)


def test_invented_terms_do_not_come_back():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    files = [
        path for room in (LIBRARY, ROOT / "export", ROOT / "recipes") for path in room.rglob("*.py")
    ]
    found = [
        f"{path.relative_to(ROOT)}: {term}"
        for path in [*pages, *files]
        for term in (*INVENTED, *INVENTED_IN_PROSE)
        if term in path.read_text("utf-8")
    ]
    assert found == []
