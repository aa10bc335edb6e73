"""What a family of checkpoints is: its config.json, the names of its tensors, its oddities."""

import dataclasses
from collections.abc import Callable

from keras_llm.checkpoints.hugging_face import weight_mapping as link
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.checkpoints.weight_specs import parts
from keras_llm.errors import InputError

# Hugging Face's name of an activation to ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
WRITTEN_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
}
_SUFFIXES = {"beta": "bias", "bias": "bias"}  # every other weight is their "weight"


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints, as data.

    Attributes:
        model_type: str, as config.json has it.
        architectures: dict of our head (None for the bare model) to the class that config.json
            names.
        read: function from `Fields` to a config.
        write: function from a config to the fields of config.json.
        names: dict of the key of a part to the name of its tensors, without ".weight" and
            ".bias", with {i} for the block's number. Parts of one name are stored side by side.
        prefix: str, what names begin with in a checkpoint with a head.
        linear: link of a kernel.
        norm_offset: float, what is subtracted from the gains of norms that are stored.
        special: dict of the key of a part to a function from part, name, config and config.json
            to its link.
        ignored: regular expressions of tensors that may be there and mean nothing here.
        copies: dict of names to names whose tensor they may repeat.
        renamed: pairs of a regular expression and what stands for it now in names.
        pooler: str, the activation of a text classifier's first layer.
        head_decides: bool. Whether a head of its own in the file makes a model untied, whatever
            config.json says.
    """

    model_type: str
    architectures: dict
    read: Callable
    write: Callable
    names: dict
    prefix: str = ""
    linear: Callable = link.transposed
    norm_offset: float = 0.0
    special: dict = dataclasses.field(default_factory=dict)
    ignored: tuple = ()
    copies: dict = dataclasses.field(default_factory=dict)
    renamed: tuple = ()
    pooler: str = "tanh"
    head_decides: bool = False

    def read_config(self, row, where):
        """The config of a config.json.

        Args:
            row: dict.
            where: str or path, what begins error messages.

        Raises:
            InputError: naming the field that is missing, wrong or cannot be represented.
        """
        try:
            return self.read(Fields(row, where))
        except ValueError as error:  # from a config or a position option: it names no file
            message = str(error)
            raise InputError(
                message if message.startswith(str(where)) else f"{where}: {message}"
            ) from None

    def without_prefix(self):
        """The same family, as checkpoints of a bare model name their tensors."""
        names = {key: name.removeprefix(self.prefix) for key, name in self.names.items()}
        copies = {name: copied.removeprefix(self.prefix) for name, copied in self.copies.items()}
        return dataclasses.replace(self, names=names, copies=copies)

    def links(self, config, row, head=None, options=None):
        """The links of a model of this family.

        Args:
            config: the model's config.
            row: dict, its config.json.
            head, options: the model's head.

        Raises:
            InputError: if the family has no place for a part of the model.
        """
        groups = {}
        for part in parts(config, head, options):
            if part.key not in self.names:
                raise InputError(f"a {self.model_type} checkpoint has no place for {part.path}.")
            name = self.names[part.key].replace("{i}", str(part.block))
            groups.setdefault(name, []).append(part)
        return [
            made for name, group in groups.items() for made in self._links(group, name, config, row)
        ]

    def _links(self, group, name, config, row):
        part = group[0]
        if len(group) > 1:
            for weight in part.weights:
                yield link.fused(
                    [f"{p.path}/{weight}" for p in group],
                    f"{name}.{_suffix(weight)}",
                    [p.weights[weight] for p in group],
                )
        elif part.key in self.special:
            yield self.special[part.key](part, name, config, row)
        elif part.kind == "experts":
            ((_, shape),) = part.weights.items()
            experts = [f"{name.replace('{e}', str(e))}.weight" for e in range(shape[0])]
            yield link.stacked(part.path, experts, shape)
        else:
            for weight, shape in part.weights.items():
                path, theirs = f"{part.path}/{weight}", f"{name}.{_suffix(weight)}"
                if weight == "kernel":
                    yield self.linear(path, theirs, shape)
                elif weight == "reverse_embeddings":
                    yield link.transposed(path, theirs, shape)
                elif part.kind == "norm" and weight in ("scale", "gamma") and self.norm_offset:
                    yield link.moved(path, theirs, shape, self.norm_offset)
                else:
                    yield link.same(path, theirs, shape)


def _suffix(weight):
    return _SUFFIXES.get(weight, "weight")


def in_blocks(template, names, prefix=""):
    """A table of names of the parts of a block, as rows of `Family.names`."""
    return {f"{prefix}block/{key}": template + name for key, name in names.items()}


def window_pattern(windowed):
    """The shortest string of "S" and "L" that repeats to a list of bools; None if all are
    True."""
    letters = "".join("S" if layer else "L" for layer in windowed)
    if "L" not in letters:
        return None
    for size in range(1, len(letters) + 1):
        if all(letter == letters[i % size] for i, letter in enumerate(letters)):
            return letters[:size]
    return letters
