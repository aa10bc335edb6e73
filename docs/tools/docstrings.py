"""The library's docstrings as mkdocstrings reads them, and which are missing."""

import ast
import re

import griffe

# Methods that Keras documents and our classes merely implement.
_OF_KERAS = re.compile(
    "build|call|compute_output_(shape|spec)|compute_loss|get_config|from_config|update_state"
    "|result|fit|evaluate|compile|train_step|test_step|get_state|set_state|set_model|on_.*"
    "|get_variable_layout"
)
_MODULES = (
    "layers",
    "models",
    "tokenizers",
    "data",
    "generation",
    "training",
    "tasks",
    "checkpoints",
)


class Docstrings(griffe.Extension):
    """Reads docstrings that are put together from a constant, and names our own sections."""

    def on_package(self, *, pkg, loader, **kwargs):
        for thing in _everything(pkg):
            if thing.is_class and "__doc__" in thing.members:
                text = _joined(thing, pkg)
                thing.docstring = griffe.Docstring(text, parent=thing, lineno=thing.lineno)
                del thing.members["__doc__"]
            if thing.docstring:
                thing.docstring.value = _sections(thing.docstring.value)


def undocumented(folder):
    """The public names without a docstring, their own methods included.

    Args:
        folder: path of the folder that holds the package.

    Returns:
        A generator of dotted names.
    """
    package = griffe.load(
        "keras_llm",
        search_paths=[str(folder)],
        extensions=griffe.Extensions(Docstrings()),
        allow_inspection=False,
        try_relative_path=False,
    )
    for name in _MODULES:
        module = package[name]
        for exported in module.exports or ():
            thing = module.members.get(exported)
            if thing is None:  # loaded when it is asked for
                continue
            thing = thing.final_target if thing.is_alias else thing
            yield from _without(thing)
    for module in package["export"].modules.values():
        for thing in module.members.values():
            if not thing.is_alias and thing.is_class and thing.name in _exported(package):
                yield from _without(thing)


def _exported(package):
    names = ast.literal_eval(str(package["export"].members["_NAMES"].value))
    return set(names)


def _without(thing):
    if not thing.docstring and not thing.is_attribute:
        yield thing.path
    for member in thing.members.values() if thing.is_class else ():
        if member.is_function and not member.name.startswith("_") and not _told(thing, member):
            yield member.path


def _told(owner, method):
    """Whether a method has a docstring, here, in a class that it comes from, or in Keras."""
    inherited = [base.members[method.name] for base in owner.mro() if method.name in base.members]
    if any(found.docstring for found in (method, *inherited)):
        return True
    return bool(_OF_KERAS.fullmatch(method.name))


def _everything(thing):
    yield thing
    if thing.is_module or thing.is_class:
        for member in list(thing.members.values()):
            if not member.is_alias:
                yield from _everything(member)


def _sections(text):
    """Our sections under names that the parser knows, lists of names on one line."""
    text = re.sub(r"\nCall arguments:", "\nOther Parameters: Call arguments:", text)
    text = re.sub(
        r"\nExample:\n((?:\S.*\n?)+)",
        lambda found: "\nExamples:\n" + re.sub("^", "    ", found[1], flags=re.M),
        text,
    )
    return re.sub(r"^((?:    )+(?:\w+, )+\w+,)\n +", r"\1 ", text, flags=re.M)


def _joined(thing, package):
    """The text of a `__doc__ = ...` that is put together from constants."""
    tree = ast.parse(thing.filepath.read_text("utf-8"))
    block = ast.parse(package["layers._block"].filepath.read_text("utf-8"))
    constants = {**_constants(block), **_constants(tree)}
    body = next(node for node in tree.body if getattr(node, "name", None) == thing.name).body
    return eval(compile(ast.Expression(body[0].value), str(thing.filepath), "eval"), constants)


def _constants(tree):
    """The texts that a module gives names to."""
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
