"""Define how layers run on new tokens with a cache."""

import abc
import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_llm.errors import InputError
from keras_llm.layers import masks
from keras_llm.types import Tensor


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


class Handler(abc.ABC):
    """How layers of some classes run in a cached step.

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


def is_cross(arguments):
    value = arguments.get("value")
    return value is not None and value is not arguments["query"]


def check_causal(layer, arguments):
    if not arguments.get("use_causal_mask") and arguments.get("attention_mask") is None:
        raise InputError(later(layer, "call it with `use_causal_mask=True`"))


def later(layer, remedy):
    return (
        f"layer {layer.name!r} ({type(layer).__name__}) depends on later positions, so that text "
        f"cannot be generated token by token: {remedy}."
    )
