"""The library's docstrings as mkdocstrings reads them, and which are missing."""

import ast
import pathlib
import re
import textwrap

import griffe

_DOCS = pathlib.Path(__file__).parent.parent

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
    """Docstrings with sections that the parser knows, and bases that a reader can look up."""

    def on_package(self, *, pkg, loader, **kwargs):
        for name in pkg["errors"].members:  # found from every module, imported there or not
            if name not in pkg.members:
                pkg.set_member(name, griffe.Alias(name, f"{pkg.path}.errors.{name}", parent=pkg))
        for thing in _everything(pkg):
            if thing.is_class and "__doc__" in thing.members:
                thing.docstring = griffe.Docstring(
                    _joined(thing, pkg),
                    parent=thing,
                    lineno=thing.lineno,
                    parser=loader.docstring_parser,
                    parser_options=loader.docstring_options,
                )
                del thing.members["__doc__"]
            if thing.docstring:
                thing.docstring.value = _sections(thing.docstring.value)
            if thing.is_attribute and str(thing.annotation) == "object":
                thing.annotation = None  # a NamedTuple must have one; the docstring says it
            for parameter in thing.parameters if thing.is_function else ():
                constant = thing.module.members.get(str(parameter.default))
                if constant is not None and not constant.is_alias and constant.is_attribute:
                    parameter.default = constant.value  # a reader does not see the module's names
        public = {thing.path for thing in _public(pkg)}
        for thing in _everything(pkg):
            if thing.is_class:
                thing.extra["docs"]["bases"] = list(_bases(thing, public))


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
    for thing in _public(package):
        yield from _without(thing)


def _public(package):
    """What users import by name."""
    for name in _MODULES:
        module = package[name]
        for exported in module.exports or ():
            thing = module.members.get(exported)
            if thing is not None:  # else it is loaded when it is asked for
                yield thing.final_target if thing.is_alias else thing
    exported = ast.literal_eval(str(package["export"].members["_NAMES"].value))
    for module in _everything(package["export"]):
        for thing in module.members.values() if module.is_module else ():
            if not thing.is_alias and thing.name in exported:
                yield thing


def _bases(thing, public):
    """The bases of a class; in the place of one of ours that is not public, its own."""
    ours = {base.name: base for base in thing.resolved_bases}
    for base in thing.bases:
        found = ours.get(str(base).rpartition(".")[2])
        if found is None or found.path in public:
            yield base
        else:
            yield from _bases(found, public)


def _without(thing):
    if not thing.docstring and not thing.is_attribute:
        yield thing.path
    for member in thing.members.values() if thing.is_class else ():
        public = not member.name.startswith("_") or member.name == "__call__"
        if member.is_function and public and not _told(thing, member):
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
    """A docstring as the parser wants it, and Markdown after it."""
    # A title is not read as Markdown.
    text = re.sub(r"\n(Call arguments.*?)`?(\w*)`?:\n", r"\nOther Parameters: \1\2:\n", text)
    text = re.sub(r"\nExample:\n((?:.+\n?)+)", _example, text)
    text = re.sub(r"(?<=\nReferences:\n)(?:.+\n?)+", _references, text)
    # Else what is before the first colon would be the type.
    text = re.sub(r"^(?:Returns|Yields):\n +", r"\g<0>: ", text, flags=re.M)
    text = re.sub(r"^((?:    )+(?:\w+, )+\w+,)\n +", r"\1 ", text, flags=re.M)
    text = re.sub(r"(?<=\nAttributes:\n)(?:.+\n?)+", _attributes, text)
    return re.sub(r"\bdocs/([\w/]+\.md)", _link, text)


def _example(found):
    """What is no session is code too."""
    code = textwrap.dedent(found[1]).strip()
    code = code if code.startswith(">>>") else f"```python\n{code}\n```"
    return f"\nExamples:\n{textwrap.indent(code, '    ')}\n"


def _references(found):
    """A list, an item of which ends where a line ends with a full stop or a semicolon."""
    text = textwrap.dedent(found[0]).strip()
    items = re.split(r"(?<=[.;])\n", text)
    return "".join(f"    - {' '.join(item.split())}\n" for item in items)


def _attributes(found):
    """Lines of several names: a space in them would begin a type, which is none here."""
    return re.sub(
        r"^    (\w+(?:, \w+)+):",
        lambda line: f"    {line[1].replace(' ', chr(0xA0))} ():",
        found[0],
        flags=re.M,
    )


def _link(found):
    """A page of the documentation by its title, from a page of the reference."""
    title = (_DOCS / found[1]).read_text("utf-8").splitlines()[0].lstrip("# ")
    return f"[{title}](../{found[1]})"


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
