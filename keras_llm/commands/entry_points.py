"""Find recipes and corpora, which packages register as entry points.

The group `keras_llm.recipes` names modules, each with:

- `Options`: a dataclass of the options, parsed by tyro. The first line of its docstring describes
  the recipe. If they have the method `check_input()`, it is called before TensorFlow is imported
  and raises an InputError if the data or the folder of a model cannot be used.
- `run(options)`: train, evaluate and save a model; return a dict with the metrics `held_out` and
  those of a baseline.
- `evaluate(folder, data=None)`: return the held-out metrics of a saved model, or those on the file
  `data`.
- `BASELINE`: str, the key of the baseline's metrics.
- `NEXT`: str, the arguments of the command to try next, such as "predict {out} TEXT"; or a dict
  from `options.kind` to such a str.
- `CORPUS_KINDS`, optional: tuple of the kinds of corpora that `--corpus` takes, see below.
- `texts(task)`, optional: return the training and the held-out texts of a saved model, two lists of
  str, for audits and for the quality of quantized exports.

A model names its recipe in `metadata["recipe"]`.

The group `keras_llm.corpora` names dicts from the name of a corpus to an object with:

- `description`: str, content, size and license.
- `kind`: str, which recipes can use it, such as "texts" or "labeled"; see
  `recipes.corpora.registry.Corpus`, which is a dataclass with these attributes.
- `packages`: tuple of `recipes.corpora.packages.Package` to download; may be empty.
- `read`: function of the paths of the downloaded packages that returns the data of the kind.

If several packages register the same name, that of keras_llm is used, else the first one found; a
warning names the ignored one. A recipe or a dict of corpora that cannot be used does not affect the
others.
"""

import contextlib
import importlib.metadata
import warnings

from keras_llm.errors import InputError
from keras_llm.silence import silent_stderr

_RECIPES, _CORPORA = "keras_llm.recipes", "keras_llm.corpora"
_OF_RECIPE = ("Options", "run", "evaluate", "BASELINE", "NEXT")
_OF_CORPUS = ("description", "kind", "packages", "read")


def recipes():
    """Return the names of all recipes, sorted."""
    return sorted(_entry_points(_RECIPES))


def recipe(name):
    """Import a recipe; returns its module.

    Raises:
        InputError: if there is no recipe of this name, or it cannot be imported or lacks a required
            attribute.
    """
    entry_points = _installed(_RECIPES)
    if name not in entry_points:
        raise InputError(f"unknown recipe {name!r}; known: {', '.join(sorted(entry_points))}.")
    try:
        return _load_recipe(entry_points[name])
    except InputError as error:
        raise InputError(f"recipe {name!r} {error}") from error


def recipe_of(task):
    """Return the recipe that trained a task, or None if it is unknown."""
    name = task.metadata.get("recipe")
    return recipe(name) if name in recipes() else None


def descriptions():
    """Return a dict from the name of each recipe to its description, or to why it cannot be used.

    Raises:
        InputError: if there are no recipes.
    """
    rows = {}
    for name, entry_point in sorted(_installed(_RECIPES).items()):
        try:
            text = (_load_recipe(entry_point).Options.__doc__ or "").strip()
        except InputError as error:
            text = str(error)
        rows[name] = text.partition("\n")[0]
    return rows


def recipes_by_kind():
    """Return a dict from each kind of corpora to the names of the recipes that take it."""
    takers = {}
    for name, entry_point in sorted(_entry_points(_RECIPES).items()):
        with contextlib.suppress(InputError):  # `descriptions` has the reason
            for kind in getattr(_load_recipe(entry_point), "CORPUS_KINDS", ()):
                takers.setdefault(kind, []).append(name)
    return takers


def corpora():
    """Import the corpora of all packages.

    Returns:
        A dict from the name of each corpus to its object; and a dict from the name of each entry
        point that cannot be used to the reason.

    Raises:
        InputError: if there are no entry points of corpora.
    """
    objects, errors = {}, {}
    for name, entry_point in _installed(_CORPORA).items():
        try:
            table = _load_corpora(entry_point)
        except InputError as error:
            errors[name] = str(error)
            continue
        for key, corpus in table.items():
            if objects.setdefault(key, corpus) is not corpus:
                warnings.warn(
                    f"two packages register the corpus {key!r}: that of {entry_point.value} is "
                    "ignored.",
                    stacklevel=2,
                )
    return objects, errors


def corpus(name, kinds):
    """Return a corpus of one of some kinds by name.

    Raises:
        InputError: if there is no corpus of this name and these kinds.
    """
    objects, errors = corpora()
    of_kinds = {key: corpus for key, corpus in objects.items() if corpus.kind in kinds}
    if name in of_kinds:
        return of_kinds[name]
    kind = " or ".join(map(repr, kinds))
    names = f"corpora of the kind {kind}: {', '.join(sorted(of_kinds))}."
    if name in objects:
        takers = recipes_by_kind().get(objects[name].kind, ["no recipe"])
        raise InputError(
            f"the corpus {name!r} is of the kind {objects[name].kind!r}, for "
            f"{', '.join(takers)}; {names}"
        )
    reasons = "".join(f" The corpora {key!r} {error}." for key, error in errors.items())
    raise InputError(f"unknown corpus {name!r}; {names}{reasons}")


def _entry_points(group):
    """Return a dict from each name of a group to its entry point; see the module docstring."""
    entry_points = {}
    for entry_point in sorted(
        importlib.metadata.entry_points(group=group),
        key=lambda one: not one.value.startswith("keras_llm."),
    ):
        used = entry_points.setdefault(entry_point.name, entry_point)
        if used.value != entry_point.value:
            warnings.warn(
                f"two packages register {entry_point.name!r} as one of {group}: {used.value} is "
                f"used and {entry_point.value} ignored.",
                stacklevel=3,
            )
    return entry_points


def _installed(group):
    """Return `_entry_points`; raise InputError if there are none."""
    entry_points = _entry_points(group)
    if not entry_points:
        what = group.removeprefix("keras_llm.")
        raise InputError(f"no {what} are installed; run pip install --editable .")
    return entry_points


def _load(entry_point):
    """Import an entry point; raise InputError with one line if that fails."""
    try:
        with silent_stderr():  # of a package that imports TensorFlow
            return entry_point.load()
    except Exception as error:  # of any package
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"cannot be imported: {reason}") from error


def _load_recipe(entry_point):
    module = _load(entry_point)
    _check(entry_point.value, module, _OF_RECIPE)
    return module


def _load_corpora(entry_point):
    table = _load(entry_point)
    if not isinstance(table, dict):
        raise InputError(f"cannot be used: {entry_point.value} is not a dict")
    for name, corpus in table.items():
        _check(f"{name!r} of {entry_point.value}", corpus, _OF_CORPUS)
    return table


def _check(what, value, names):
    """Raise InputError if `value` lacks an attribute."""
    if missing := [name for name in names if not hasattr(value, name)]:
        raise InputError(f"cannot be used: {what} lacks {', '.join(missing)}")
