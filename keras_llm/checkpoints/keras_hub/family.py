"""Describe KerasHub backbones and link their variables to the weights of a model."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.weight_mapping import Link
from keras_llm.checkpoints.weight_specs import Part, parts
from keras_llm.errors import InputError
from keras_llm.models import CausalLM, CausalLMConfig
from keras_llm.types import JSON

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
# A rule links the parts of a model that a backbone stores under one name, given that name, the
# shapes of all variables by name, and the config of the model.
Rule: TypeAlias = Callable[[list[Part], str, Shapes, CausalLMConfig], Iterator[Link]]


@dataclasses.dataclass(frozen=True)
class Family:
    """A class of KerasHub backbones.

    Attributes:
        read: function from a backbone and a maximum sequence length to a config. It refuses the
            arguments of the backbone that no config describes.
        names: dict of the key of a part to the name of its variables, with {i} for the block
            number. Parts with the same name are given to one rule together.
        rules: dict of the key of a part to its `Rule`. Defaults to `same`.
        length: str, the attribute with the maximum sequence length, or None if there is none.
        has_fixed_length: bool. Whether only the stored length is possible.
        ignored: regular expressions of variables that are not used.
        write: function from a config to the arguments of a backbone, or to None if there are none.
            None if models cannot be converted to this class.
    """

    read: Callable[[Any, int], CausalLMConfig]
    names: dict[str, str]
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    length: str | None = None
    has_fixed_length: bool = False
    ignored: tuple[str, ...] = ()
    write: Callable[[CausalLMConfig], JSON | None] | None = None

    def links(self, kind: str, model: CausalLM, shapes: Shapes) -> list[Link]:
        """Link the weights of a model to the variables of a backbone.

        Args:
            kind: str, the class of the backbone, for messages.
            model: a model, whose weights need not be allocated.
            shapes: dict of the names of the backbone's variables to their shapes.

        Raises:
            InputError: for weights that the backbone does not have, such as those of a quantized
                model.
        """
        groups: dict[str, list[Part]] = {}
        for part in parts(model):
            name = self.names.get(part.key)
            if name is None:
                raise InputError(
                    f"a {kind} has no weight for {part.path!r} of the model. A quantized model "
                    "cannot be converted; convert it before quantization."
                )
            groups.setdefault(name.replace("{i}", str(part.block)), []).append(part)
        return [
            link
            for name, group in groups.items()
            for link in self.rules.get(group[0].key, same)(group, name, shapes, model.config)
        ]


def variables_of(backbone: keras.Model) -> dict[str, keras.Variable]:
    """Return the variables of a backbone by name, without the states of seed generators.

    The name is the path of a variable. It begins with the name of the block, and has no numbers of
    automatic names.
    """
    prefixes = {
        id(variable): f"{block.name}/"
        for block in backbone.transformer_layers
        for variable in block.variables
    }
    variables = {}
    for variable in backbone.variables:
        if "seed_generator" in variable.path:
            continue
        path, prefix = variable.path, prefixes.get(id(variable), "")
        if not path.startswith(prefix):
            path = prefix + path
        variables[re.sub(r"(_sparse_moe_block)_\d+/", r"\1/", path)] = variable
    return variables


def same(group: list[Part], name: str, shapes: Shapes, config: CausalLMConfig) -> Iterator[Link]:
    """Link weights to variables of the same order, which may have a separate axis for heads."""
    for path, variable, shape in _pairs(group, name):
        yield weight_mapping.same(path, variable, shape, shapes.get(variable, shape))


def minus_one(
    group: list[Part], name: str, shapes: Shapes, config: CausalLMConfig
) -> Iterator[Link]:
    """Link the scales of norms that are stored as their difference from 1."""
    for path, variable, shape in _pairs(group, name):
        yield weight_mapping.moved(path, variable, shape, 1.0)


def heads_first(
    group: list[Part], name: str, shapes: Shapes, config: CausalLMConfig
) -> Iterator[Link]:
    """Link kernels (D, N H) that are stored as (N, D, H)."""
    for path, variable, shape in _pairs(group, name):
        stored = (shape[1] // config.head_dim, shape[0], config.head_dim)
        yield _read_only(
            {path: shape},
            {variable: stored},
            lambda tensors, shape=shape: [tensors[0].swapaxes(0, 1).reshape(shape)],
        )


def fused(group: list[Part], name: str, shapes: Shapes, config: CausalLMConfig) -> Iterator[Link]:
    """Link weights that are stored as one variable, concatenated along the last axis."""
    paths, sizes = zip(*((path, shape) for path, _, shape in _pairs(group, name)), strict=True)
    yield weight_mapping.fused(list(paths), name, list(sizes))


def fused_in_heads(
    group: list[Part], name: str, shapes: Shapes, config: CausalLMConfig
) -> Iterator[Link]:
    """Link the projections of queries, keys and values, stored as (..., N, 3 H) together."""
    rows: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, variable, shape in _pairs(group, name):
        rows.setdefault(variable, {})[path] = shape
    for variable, weights in rows.items():
        shape = next(iter(weights.values()))
        yield _read_only(
            weights,
            {variable: (*shape[:-1], config.num_heads, 3 * shape[-1] // config.num_heads)},
            lambda tensors, shape=shape: [
                part.reshape(shape) for part in np.split(tensors[0], 3, axis=-1)
            ],
        )


def with_normalized_embedding(norm: str) -> Rule:
    """Return the rule of a token embedding that is normalized after the lookup.

    The norm of a token's vector depends only on the token. The embedding of the model has the
    normalized vectors, its head the others.

    Args:
        norm: str, the name of the norm.
    """

    def rule(group, name, shapes, config):
        table = {f"{name}/embeddings": (config.vocabulary_size, config.hidden_dim)}
        gains = {f"{norm}/{weight}": (config.hidden_dim,) for weight in ("gamma", "beta")}
        for part in group:
            ((path, shape),) = part.weights.items()
            if part.key == "head":
                yield weight_mapping.transposed(path, f"{name}/embeddings", shape)
            else:
                yield _read_only(
                    {path: shape},
                    {**table, **gains},
                    lambda tensors: [_normalized(*tensors, config.norm_epsilon)],
                )

    return rule


def _normalized(rows, gamma, beta, epsilon):
    """Apply a layer norm to the rows of a matrix."""
    rows, gamma, beta = (np.asarray(array, "float32") for array in (rows, gamma, beta))
    rows = rows - rows.mean(axis=-1, keepdims=True)
    return rows / np.sqrt(rows.var(axis=-1, keepdims=True) + epsilon) * gamma + beta


def _pairs(group, name):
    """Yield path, name of the variable and shape of each weight of a group."""
    for part in group:
        for path, shape in part.weights.items():
            weight = "" if path == part.path else f"/{path.rpartition('/')[2]}"
            yield path, name + weight, shape


def _read_only(weights, tensors, read):
    """Link weights of a class of backbones that models are not converted to."""
    return Link(weights, tensors, read)
