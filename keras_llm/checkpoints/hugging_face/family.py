"""Describe checkpoint families: their config.json, tensor names and exceptions."""

import dataclasses
from collections.abc import Callable, Iterable

from keras_llm.checkpoints.hugging_face import weight_mapping as link
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.checkpoints.weight_specs import Part, parts
from keras_llm.errors import InputError
from keras_llm.models import ConfiguredModel, TransformerConfig
from keras_llm.types import JSON, PathLike

# Activation names of Hugging Face to those of this library.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
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
_SUFFIXES = {"beta": "bias", "bias": "bias"}  # all other weights are named "weight"


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        model_type: str, the `model_type` in config.json.
        architectures: dict of a head of this library (None for the model without a head) to the
            class name in config.json.
        read: function from `Fields` to a config.
        write: function from a config to the fields of config.json.
        names: dict of the key of a part to the name of its tensors, without ".weight" and
            ".bias", with {i} for the block number. Parts with the same name are stored fused.
        prefix: str, the prefix of names in a checkpoint with a head.
        linear: function that links a kernel.
        norm_offset: float, subtracted from the scales of norms in the checkpoint.
        special: dict of the key of a part to a function from part, name, config and config.json
            to its link.
        ignored: regular expressions of tensors that may be present and are not used.
        copies: dict of names to names of tensors that they may duplicate.
        renamed: pairs of a regular expression and its replacement in names.
        pooler: str, the activation of the first layer of a text classifier.
        masked_lm_activation: str, the activation of the first layer of a masked_lm head if it is
            not that of the config, or None.
        fused_by_head: bool. Whether fused projections are stored head by head.
        head_decides: bool. Whether a separate head in the file makes a model untied, and no head
            makes it tied, regardless of config.json.
    """

    model_type: str
    architectures: dict[str | None, str]
    read: Callable[[Fields], TransformerConfig]
    write: Callable[[TransformerConfig], JSON] | None
    names: dict[str, str]
    prefix: str = ""
    linear: Callable[[str, str, tuple[int, ...]], link.Link] = link.transposed
    norm_offset: float = 0.0
    special: dict[str, Callable[[Part, str, TransformerConfig, JSON], link.Link]] = (
        dataclasses.field(default_factory=dict)
    )
    ignored: tuple[str, ...] = ()
    copies: dict[str, str] = dataclasses.field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    pooler: str = "tanh"
    masked_lm_activation: str | None = None
    fused_by_head: bool = False
    head_decides: bool = False

    def architecture(self, head: str | None) -> str | None:
        """Return the class name in config.json of a model with a head; None if there is none."""
        return self.architectures.get("text_classifier" if head == "text_regressor" else head)

    def read_config(self, row: JSON, where: PathLike) -> TransformerConfig:
        """Read the config from the contents of a config.json.

        Args:
            row: dict.
            where: str or path, the start of error messages.

        Raises:
            InputError: if a field is missing, wrong or not supported; the message names it.
        """
        try:
            return self.read(Fields(row, where))
        except (ValueError, ArithmeticError) as error:  # without a file name
            message = str(error)
            raise InputError(
                message if message.startswith(str(where)) else f"{where}: {message}"
            ) from None

    def without_prefix(self) -> "Family":
        """Return the family with the tensor names of checkpoints without a head."""
        names = {key: name.removeprefix(self.prefix) for key, name in self.names.items()}
        copies = {name: copied.removeprefix(self.prefix) for name, copied in self.copies.items()}
        return dataclasses.replace(self, names=names, copies=copies)

    def links(self, model: ConfiguredModel, row: JSON, with_head: bool = True) -> list[link.Link]:
        """Return the links of a model of this family.

        Args:
            model: a model, whose weights need not be allocated.
            row: dict, the contents of its config.json.
            with_head: bool. Whether to link the head of a head model too.

        Raises:
            InputError: if the family does not support a part of the model.
        """
        groups: dict[str, list[Part]] = {}
        for part in parts(model, with_head):
            key = part.key
            if key.startswith("text_regressor/"):  # stored as a classifier with one class
                key = "text_classifier/" + ("pooler" if key.endswith("pooler") else "logits")
            if key not in self.names:
                raise InputError(f"a {self.model_type} checkpoint does not support {part.path}.")
            name = self.names[key].replace("{i}", str(part.block))
            groups.setdefault(name, []).append(part)
        return [
            weight_link
            for name, group in groups.items()
            for weight_link in self._links(group, name, model.config, row)
        ]

    def _links(self, group, name, config, row):
        part = group[0]
        if len(group) > 1:
            order = list(self.names)
            group.sort(key=lambda part: order.index(part.key))
            for weights in zip(*(part.weights.items() for part in group), strict=True):
                paths, shapes = zip(*weights, strict=True)
                names = list(paths), f"{name}.{_suffix(paths[0])}", list(shapes)
                if self.fused_by_head:
                    yield link.fused_by_head(*names, config.num_heads)
                elif self.linear is link.transposed and len(shapes[0]) == 2:
                    yield link.fused_transposed(*names)
                else:
                    yield link.fused(*names)
        elif part.key in self.special:
            yield self.special[part.key](part, name, config, row)
        elif "{e}" in name:  # one tensor for each expert
            ((path, shape),) = part.weights.items()
            experts = [f"{name.replace('{e}', str(e))}.weight" for e in range(shape[0])]
            yield link.stacked(path, experts, shape)
        else:
            for path, shape in part.weights.items():
                weight, tensor_name = path.rpartition("/")[2], f"{name}.{_suffix(path)}"
                if weight == "kernel":
                    yield self.linear(path, tensor_name, shape)
                elif weight == "reverse_embeddings":
                    yield link.transposed(path, tensor_name, shape)
                elif weight in ("scale", "gamma") and self.norm_offset:
                    yield link.moved(path, tensor_name, shape, self.norm_offset)
                else:
                    yield link.same(path, tensor_name, shape)


def _suffix(path: str) -> str:
    return _SUFFIXES.get(path.rpartition("/")[2], "weight")


def in_blocks(template: str, names: dict[str, str], prefix: str = "") -> dict[str, str]:
    """Return a table of the names of a block's parts, as rows of `Family.names`."""
    return {f"{prefix}block/{key}": template + name for key, name in names.items()}


def window_pattern(windowed: Iterable[bool]) -> str | None:
    """Return the shortest pattern of "S" and "L" that repeats to a list of bools.

    Returns None if all are True.
    """
    letters = "".join("S" if layer else "L" for layer in windowed)
    if "L" not in letters:
        return None
    for size in range(1, len(letters) + 1):
        if all(letter == letters[i % size] for i, letter in enumerate(letters)):
            return letters[:size]
    return letters
