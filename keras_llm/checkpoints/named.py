"""Fill the weights of any model from tensors by name."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_llm.checkpoints.hugging_face.tensors import Tensors, open_file, open_folder
from keras_llm.errors import InputError
from keras_llm.models.deferred import allocate
from keras_llm.types import PathLike

_NUMBER = re.compile(r"\\\{(\w+)\\\}")  # `{i}` in an escaped path


def load_tensors(
    model: keras.Model,
    mapping: Mapping[str, Any],
    checkpoint: PathLike | Mapping[str, np.ndarray] | None = None,
    partial: bool = False,
) -> list[str]:
    """Fill the weights of any model from tensors, by name.

    All names and shapes are checked before the first weight changes.

    Args:
        model: any built `keras.Model`, such as one that is composed from layers.
        mapping: dict from paths of weights (`weight.path`) to a NumPy array; to the name of a
            tensor of `checkpoint` with the shape of the weight; or to a pair of a name, or tuple of
            names, and a function from these tensors to an array of that shape, which is first
            called with zeros to check the shape. `{i}` in a path stands for a number, and in the
            names for the same one; any name may be in the braces.
        checkpoint: str or path of a safetensors file, or of a folder with `model.safetensors` or
            its shards; or a dict of name to NumPy array. None if `mapping` has only arrays.
        partial: bool. Whether weights that are not in `mapping` keep their values.

    Returns:
        The names of the tensors of `checkpoint` that were not used, a sorted list of str.

    Raises:
        InputError: if a path matches no weight or several entries match one, a weight has no
            tensor, a tensor is missing, or a shape is wrong, naming it.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> inputs = keras.Input((2,))
    >>> model = keras.Model(inputs, keras.layers.Dense(3, name="up")(inputs))
    >>> torch_names = {"fc.weight": np.ones((3, 2)), "fc.bias": np.zeros(3), "step": np.zeros(1)}
    >>> mapping = {"up/kernel": ("fc.weight", np.transpose), "up/bias": "fc.bias"}
    >>> load_tensors(model, mapping, torch_names)
    ['step']
    """
    tensors = _opened(checkpoint)
    weights: dict[str, keras.Variable] = {}
    for weight in model.weights:
        if weight.path in weights:
            raise InputError(f"`model` has two weights of the path {weight.path!r}.")
        weights[weight.path] = weight
    links = _links(mapping, weights)
    missing = [path for path in weights if path not in links]
    if missing and not partial:
        raise InputError(
            f"`mapping` has no entry for the weight {missing[0]!r} ({len(missing)} in all); pass "
            "partial=True to keep their values."
        )
    used: set[str] = set()
    for path, (names, convert) in links.items():
        for name in names:
            if name not in tensors:
                raise InputError(f"{tensors.where}: the tensor {name!r} for {path!r} is missing.")
        used.update(names)
        empty = [np.zeros(tensors.shape(name), "float32") for name in names]
        shape, expected = np.shape(convert(path, empty)), tuple(weights[path].shape)
        if shape != expected:
            raise InputError(
                f"the weight {path!r} has the shape {expected}, its entry of `mapping` {shape}."
            )
    for path, (names, convert) in links.items():
        array = convert(path, [tensors[name] for name in names])
        allocate(weights[path], np.asarray(array, "float32"))
    return sorted(set(tensors) - used)


def _opened(checkpoint):
    if checkpoint is None:
        return Tensors({}, "`checkpoint`")
    if isinstance(checkpoint, Mapping):
        sources = {
            name: (np.shape(array), lambda array=array: np.asarray(array))
            for name, array in checkpoint.items()
        }
        return Tensors(sources, "`checkpoint`")
    path = pathlib.Path(checkpoint)
    return open_file(path) if path.is_file() else open_folder(path)


def _links(mapping, weights):
    """Return a dict from weight paths to tensor names and a function from path and tensors."""
    links: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {}
    for template, entry in mapping.items():
        pattern = _pattern(template)
        matches = [match for path in weights if (match := pattern.fullmatch(path))]
        if not matches:
            raise InputError(
                f"`mapping`: no weight has the path {template!r}; the paths are "
                f"{', '.join(weights)}."
            )
        for match in matches:
            path, numbers = match.group(), match.groupdict()
            if path in links:
                raise InputError(f"`mapping` has two entries for the weight {path!r}.")
            links[path] = _link(template, entry, numbers)
    return links


def _pattern(template):
    """Return the regular expression of a path; a name that is repeated stands for one number."""
    seen = set()

    def number(match):
        name = match.group(1)
        if not name.isidentifier():
            raise InputError(
                f"`mapping`: {{{name}}} in {template!r} must be a name, such as {{i}}."
            )
        group = f"(?P={name})" if name in seen else rf"(?P<{name}>\d+)"
        seen.add(name)
        return group

    return re.compile(_NUMBER.sub(number, re.escape(template)))


def _link(template, entry, numbers):
    if isinstance(entry, np.ndarray):
        return (), lambda path, tensors: entry
    names, function = entry, None
    if isinstance(entry, tuple) and len(entry) == 2 and callable(entry[1]):
        names, function = entry
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"`mapping` of {template!r} must be an array, a name, or a pair of a name or tuple of "
            f"names and a function, got {entry!r:.80}."
        )
    if function is None and len(names) != 1:
        raise InputError(f"`mapping` of {template!r} needs a function for {len(names)} tensors.")
    try:
        names = tuple(name.format(**numbers) for name in names)
    except (KeyError, IndexError, ValueError):
        raise InputError(
            f"`mapping` of {template!r}: {names} may have only the braces of the path."
        ) from None

    def convert(path, tensors):
        try:
            return tensors[0] if function is None else function(*tensors)
        except Exception as error:  # the user's function may raise anything
            raise InputError(f"the function for the weight {path!r} failed: {error}") from error

    return names, convert
