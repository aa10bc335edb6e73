"""Check imports between packages, type hints and terms."""

import ast
import configparser
import importlib
import inspect
import pathlib
import warnings

import pytest

import keras_llm
from keras_llm import keras_internals

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
LIBRARY = ROOT / "keras_llm"

# From top to bottom; a package imports only from itself and from those below it. The command line
# finds recipes by entry points, so it is below them.
LAYERS = [
    {"recipes"},
    {"cli", "commands", "__main__"},
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
        *(
            "errors",
            "files",
            "hub",
            "interrupts",
            "json_files",
            "keras_internals",
            "preset_names",
            "sampling_settings",
            "silence",
        ),
        *("span_search", "types"),
    },
]
LAZY_CHECKPOINTS = [pathlib.Path(f"keras_llm/tasks/{name}.py") for name in ("keras_hub", "by_name")]
ONLY_KERAS = ("layers", "models", "generation", "training")


def imports(path):
    """Yield the absolute names of all modules that a file imports."""
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
            package = name or path.relative_to(LIBRARY).parts[0].removesuffix(".py")
            if package != "__init__":
                yield pytest.param(path, package, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize("path, package", modules())
def test_imports_follow_layer_order(path, package):
    level = next(i for i, packages in enumerate(LAYERS) if package in packages)
    same_layer = LAYERS[level] if level in (1, len(LAYERS) - 1) else {package}
    allowed = same_layer.union(*LAYERS[level + 1 :], keras_llm._NAMES, {"__version__"})
    packages = {n.split(".")[1] for n in imports(path) if n.startswith("keras_llm.")}
    if path.relative_to(ROOT) == pathlib.Path("keras_llm/tasks/base.py"):
        allowed = allowed | {"export"}  # inside `Task.export`
    if path.relative_to(LIBRARY.parent) in LAZY_CHECKPOINTS:
        allowed = allowed | {"checkpoints"}  # inside functions
    assert packages <= allowed, f"{path} imports {sorted(packages - allowed)}"


@pytest.mark.parametrize("path, package", modules())
def test_backend_imports_only_in_backend_files(path, package):
    file_backend = {"tensorflow": "tensorflow", "tensorboard": "tensorflow", "jax": "jax"}.get(
        path.stem
    )
    if package in ONLY_KERAS:
        imported = {name.split(".")[0] for name in imports(path)}
        assert not imported & {"tensorflow", "tensorflow_text", "jax", "torch"} - {file_backend}, (
            path
        )


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


def test_every_package_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY.rglob("__init__.py")
    }
    for package in ("export", "recipes"):
        folders = [path.parent.relative_to(ROOT) for path in (ROOT / package).rglob("__init__.py")]
        packages |= {".".join(["keras_llm", *folder.parts]) for folder in folders}
    assert listed == packages


def test_public_names_exist_and_have_docstrings():
    for package in sorted(keras_llm._SUBMODULES - {"recipes"}):
        module = importlib.import_module(f"keras_llm.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            assert value.__doc__, f"keras_llm.{package}.{name} has no docstring"
    for name in keras_llm.__all__:
        assert getattr(keras_llm, name) is not None
    with pytest.raises(AttributeError, match="keras_llm"):
        keras_llm.nonsense  # noqa: B018


def public_functions():
    """Yield the names and values of the packages' public functions and methods."""
    for package in sorted(keras_llm._SUBMODULES - {"recipes"}):
        module = importlib.import_module(f"keras_llm.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{package}.{name}", value
            elif inspect.isclass(value) and value.__module__.startswith("keras_llm"):
                for method, function in vars(value).items():
                    function = getattr(function, "__func__", function)
                    is_public = not method.startswith("_") or method in ("__init__", "__call__")
                    is_library_code = getattr(function, "__module__", "").startswith("keras_llm")
                    if inspect.isfunction(function) and is_public and is_library_code:
                        yield f"{package}.{name}.{method}", function


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


# Terms that nobody outside this repository uses.
DISCOURAGED_NAMES = ("CharacterPlaces", "_Watched", "device_parity", "decoder_proof", "flat_graph")
DISCOURAGED_PHRASES = (
    "cannot be had",
    "to be had",
    "time of grace",
    "what stands there",
    "torn and left aside",
    "as if nothing had happened",
    "a user can mend",
)


def test_discouraged_terms_are_not_used():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    files = [
        path
        for package in (LIBRARY, ROOT / "export", ROOT / "recipes")
        for path in package.rglob("*.py")
    ]
    occurrences = [
        f"{path.relative_to(ROOT)}: {term}"
        for path in [*pages, *files]
        for term in (*DISCOURAGED_NAMES, *DISCOURAGED_PHRASES)
        if term in path.read_text("utf-8")
    ]
    assert occurrences == []
