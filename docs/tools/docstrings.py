"""Adapt the library's docstrings to mkdocstrings, and find public names without one."""

import ast
import pathlib
import re
import textwrap

import griffe

_DOCS = pathlib.Path(__file__).parent.parent

# Methods that Keras documents and our classes only implement.
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
    """A griffe extension that rewrites docstring sections for the parser and lists public bases."""

    def on_package(self, *, pkg, loader, **kwargs):
        for name in pkg["errors"].members:  # cross-references find them from every module
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
                thing.annotation = None  # required in a NamedTuple; the docstring has the type
            for parameter in thing.parameters if thing.is_function else ():
                constant = thing.module.members.get(str(parameter.default))
                if constant is not None and not constant.is_alias and constant.is_attribute:
                    parameter.default = constant.value  # readers do not see private constants
        public = {thing.path for thing in _public(pkg)}
        for thing in _everything(pkg):
            if thing.is_class:
                bases = {str(base): base for base in _bases(thing, public)}  # each once
                thing.extra["docs"]["bases"] = list(bases.values())


def undocumented(folder):
    """Find public names, including methods, without a docstring.

    Args:
        folder: path of the folder that contains the package.

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
        yield from _missing_docstrings(thing)


def _public(package):
    """Yield the objects that users import by name."""
    for name in _MODULES:
        module = package[name]
        for exported in module.exports or ():
            thing = module.members.get(exported)
            if thing is not None:  # else it is imported lazily
                yield thing.final_target if thing.is_alias else thing
    exported = ast.literal_eval(str(package["export"].members["_NAMES"].value))
    for module in _everything(package["export"]):
        for thing in module.members.values() if module.is_module else ():
            if not thing.is_alias and thing.name in exported:
                yield thing


def _bases(thing, public):
    """Yield the bases of a class, replacing private ones of the library by their own bases."""
    own_bases = {base.name: base for base in thing.resolved_bases if base.is_class}
    for base in thing.bases:
        own_base = own_bases.get(str(base).rpartition(".")[2])
        if own_base is None or own_base.path in public:
            if not str(base).rpartition(".")[2].startswith("_"):
                yield base
        else:
            yield from _bases(own_base, public)


def _missing_docstrings(thing):
    """Yield the paths of an object and of its public methods that have no docstring."""
    if not thing.docstring and not thing.is_attribute:
        yield thing.path
    for member in thing.members.values() if thing.is_class else ():
        public = not member.name.startswith("_") or member.name == "__call__"
        if member.is_function and public and not _has_docstring(thing, member):
            yield member.path


def _has_docstring(owner, method):
    """Check whether a method has a docstring, here, in a base class, or in Keras."""
    inherited = [base.members[method.name] for base in owner.mro() if method.name in base.members]
    if any(function.docstring for function in (method, *inherited)):
        return True
    return bool(_OF_KERAS.fullmatch(method.name))


def _everything(thing):
    """Yield a module or class and all its members, recursively."""
    yield thing
    if thing.is_module or thing.is_class:
        for member in list(thing.members.values()):
            if not member.is_alias:
                yield from _everything(member)


def _sections(text):
    """Rewrite the sections of a docstring for the parser and for Markdown."""
    # Section titles are not parsed as Markdown.
    text = re.sub(r"\n(Call arguments.*?)`?(\w*)`?:\n", r"\nOther Parameters: \1\2:\n", text)
    text = re.sub(r"\nExample:\n((?:.+\n?)+)", _example, text)
    text = re.sub(r"(?<=\nReferences:\n)(?:.+\n?)+", _references, text)
    # Otherwise the text before the first colon would be parsed as the type.
    text = re.sub(r"^(?:Returns|Yields):\n +", r"\g<0>: ", text, flags=re.M)
    text = re.sub(r"^((?:    )+(?:\w+, )+\w+,)\n +", r"\1 ", text, flags=re.M)
    text = re.sub(r"(?<=\nAttributes:\n)(?:.+\n?)+", _attributes, text)
    return re.sub(r"\bdocs/([\w/]+\.md)", _link, text)


def _example(match):
    """Format an example as a code block, whether or not it is a doctest."""
    code = textwrap.dedent(match[1]).strip()
    code = code if code.startswith(">>>") else f"```python\n{code}\n```"
    return f"\nExamples:\n{textwrap.indent(code, '    ')}\n"


def _references(match):
    """Format references as a list; an item ends at a line that ends with a period or semicolon."""
    text = textwrap.dedent(match[0]).strip()
    items = re.split(r"(?<=[.;])\n", text)
    return "".join(f"    - {' '.join(item.split())}\n" for item in items)


def _attributes(match):
    """Join the names of lines with several attributes; a space would begin a type."""
    return re.sub(
        r"^    (\w+(?:, \w+)+):",
        lambda line: f"    {line[1].replace(' ', chr(0xA0))} ():",
        match[0],
        flags=re.M,
    )


def _link(match):
    """Link to a page of the documentation by its title, from a page of the API reference."""
    title = (_DOCS / match[1]).read_text("utf-8").splitlines()[0].lstrip("# ")
    return f"[{title}](../{match[1]})"


def _joined(thing, package):
    """Evaluate a `__doc__ = ...` that is composed of string constants."""
    tree = ast.parse(thing.filepath.read_text("utf-8"))
    block = ast.parse(package["layers._block"].filepath.read_text("utf-8"))
    constants = {**_constants(block), **_constants(tree)}
    body = next(node for node in tree.body if getattr(node, "name", None) == thing.name).body
    return eval(compile(ast.Expression(body[0].value), str(thing.filepath), "eval"), constants)


def _constants(tree):
    """Return the string constants of a module by name."""
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
