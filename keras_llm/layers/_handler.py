"""Define how layers run on new tokens with a cache."""

import abc
import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_llm.errors import InputError
from keras_llm.keras_internals import implicit_mask
from keras_llm.layers import masks
from keras_llm.types import Tensor

IS_CROSS = "is_cross"
"""An argument that is added where `query` and `value` differ: whether `value` is the source."""


@dataclasses.dataclass
class Step:
    """The new tokens of a cached step, and what the layers share.

    Attributes:
        positions: int tensor (T,) or (B, T).
        index: int tensor, scalar or (B,), the slot of each row's first token; or the int 0.
        attention_mask: bool tensor (B, T, S), True = may attend; None is the causal mask.
        padding_mask: bool tensor (B, T), True = a real token, real tokens first; None if all are.
        num_slots: int or int scalar tensor. S of a full cache; None if there is no full cache.
    """

    positions: Tensor
    index: Any
    attention_mask: Tensor | None = None
    padding_mask: Tensor | None = None
    num_slots: Any = None

    def __post_init__(self) -> None:
        self.is_causal = self.attention_mask is None
        self.slots = None
        if self.num_slots is not None:
            self.slots = ops.arange(self.num_slots)
            if self.attention_mask is None:
                self.attention_mask = masks.causal_mask(self.positions, self.slots)
            else:
                self.slots = self.slots[: self.attention_mask.shape[-1]]


@dataclasses.dataclass
class Rows:
    """How the layers run on whole rows, other than they are called in the graph.

    Attributes:
        positions: int tensor (T,) or (B, T); None is 0 .. T - 1.
        attention_mask: bool tensor (B, T, T), True = may attend, which replaces causal masks; None
            keeps them.
        scores, cross_scores: lists to which each layer adds the probabilities of its self-attention
            (B, N, T, T) and cross-attention (B, N, T, S); None if they are not needed.
    """

    positions: Tensor | None = None
    attention_mask: Tensor | None = None
    scores: list[Tensor] | None = None
    cross_scores: list[Tensor] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether rows hold several documents, which layers must not mix."""
        return self.positions is not None or self.attention_mask is not None

    def add_scores(self, own: list[Tensor], cross: list[Tensor]) -> None:
        """Add the probabilities of a layer."""
        if self.scores is not None:
            self.scores.extend(own)
        if self.cross_scores is not None:
            self.cross_scores.extend(cross)

    @property
    def wants_scores(self) -> bool:
        """Whether probabilities are needed."""
        return self.scores is not None or self.cross_scores is not None


class Handler(abc.ABC):
    """How layers of some classes run in a cached step, and on packed rows.

    The methods take the layer and its call arguments, a dict by name. Before a step, these are
    symbolic tensors.
    """

    group: ClassVar[str] = ""
    """What its cache holds; calls of the same group are numbered together."""

    def entries(
        self, layer: Any, arguments: dict[str, Any], batch_size: Any, length: Any, rings: bool
    ) -> dict[str, Tensor]:
        """Return the empty cache entries by name.

        Args:
            layer: the layer.
            arguments: its symbolic arguments.
            batch_size: int or int scalar tensor. B.
            length: int or int scalar tensor. S.
            rings: bool. Whether layers with a sliding window keep only the tokens within it.

        Raises:
            InputError: if the layer cannot be run token by token as it is called.
        """
        return {}

    def source(self, layer: Any, arguments: dict[str, Any]) -> dict[str, Tensor]:
        """Return the entries that depend only on the source of an encoder-decoder, by name."""
        return {}

    @abc.abstractmethod
    def call(
        self, layer: Any, arguments: dict[str, Any], cache: dict[str, Tensor], step: Step
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run the layer on new tokens; return its outputs and the changed entries of the cache."""

    def run_rows(self, layer: Any, arguments: dict[str, Any], rows: Rows) -> Any:
        """Run the layer on whole rows; return its outputs.

        Raises:
            InputError: if the rows are packed, and the layer would mix their documents.
        """
        if rows.is_packed:
            raise InputError(
                f"layer {layer.name!r} ({type(layer).__name__}) does not support packed rows with "
                "attention within segments: it would mix the documents of a row."
            )
        return layer(**arguments)


def attention_on_rows(layer, arguments, rows):
    """Run an attention layer of Keras or this library; see `Handler.run_rows`."""
    returned = arguments.get("return_attention_scores", False)
    arguments = {**arguments, "return_attention_scores": returned or rows.wants_scores}
    cross = is_cross(arguments)
    arguments.pop(IS_CROSS, None)
    if rows.attention_mask is not None and not cross:
        mask = masks.merge(arguments.get("attention_mask"), rows.attention_mask)
        arguments |= {"attention_mask": mask, "use_causal_mask": False}
    outputs = layer(**arguments)
    if not arguments["return_attention_scores"]:
        return outputs
    if cross:
        rows.add_scores([], [outputs[1]])
    else:
        rows.add_scores([outputs[1]], [])
    return outputs if returned else outputs[0]


def is_cross(arguments):
    """Return whether an attention layer reads the source of an encoder-decoder."""
    value = arguments.get("value")
    return arguments.get(IS_CROSS, value is not None and value is not arguments["query"])


def source_mask(source):
    """Return the implicit mask of a source as a cache entry, an empty dict if there is none."""
    mask = implicit_mask(source)
    return {} if mask is None else {"cross_mask": ops.cast(mask, "bool")}


def check_causal(layer, arguments):
    if not arguments.get("use_causal_mask") and arguments.get("attention_mask") is None:
        raise InputError(later(layer, "call it with `use_causal_mask=True`"))


def later(layer, remedy):
    return (
        f"layer {layer.name!r} ({type(layer).__name__}) depends on later positions, so that text "
        f"cannot be generated token by token: {remedy}."
    )
