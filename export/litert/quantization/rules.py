"""Define which weights are quantized, and how: rules that match layers by name."""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_llm.errors import InputError

if TYPE_CHECKING:
    pass

KINDS = ("dynamic", "weight_only", "static")
_BLOCKS = (None, 32, 64, 128, 256)
_TABLES = r"/embedding_\d+\b|/head\b"


@dataclasses.dataclass(frozen=True)
class QuantizationRule:
    """A rule that selects layers and sets how their matmuls and embeddings are quantized.

    Args:
        layers: str. A regular expression that is searched for in layer names:
            "block_3/feed_forward/up", "decode/embedding_0", "decode/head". If several rules match,
            the last one applies.
        bits: 8 or 4 bits for the weights; 32 disables quantization.
        block: None for one scale for each output channel; 32, 64, 128 or 256 for one scale for
            each block of that many weights of a channel (4 bits only; layers whose width is not a
            multiple of it use 8 bits and one scale for each channel).
        kind: "dynamic": activations are quantized to 8 bits at run time and matmuls use integers;
            "weight_only": weights are dequantized before a float32 matmul; "static": the range of
            activations is fixed from calibration texts.

    Raises:
        InputError: if an argument is invalid.
    """

    layers: str = ""
    bits: int = 8
    block: int | None = None
    kind: str = "dynamic"

    def __post_init__(self) -> None:
        try:
            re.compile(self.layers)
        except (re.error, TypeError) as error:
            raise InputError(f"`layers` must be a regular expression: {error}.") from None
        if self.bits not in (4, 8, 32):
            raise InputError(f"`bits` must be 4, 8 or 32, got {self.bits!r}.")
        if self.block not in _BLOCKS or (self.block and self.bits != 4):
            raise InputError(
                f"`block` must be None or, with 4 bits, one of {_BLOCKS[1:]}; got {self.block!r}."
            )
        if self.kind not in KINDS:
            raise InputError(f"`kind` must be one of {KINDS}, got {self.kind!r}.")


RECIPES = {
    "int8": (QuantizationRule(),),
    "int8_weight_only": (QuantizationRule(kind="weight_only"),),
    "int8_static": (QuantizationRule(), QuantizationRule(layers="block_", kind="static")),
    "int4": (QuantizationRule(bits=4, block=32), QuantizationRule(layers=_TABLES)),
}
NAMES = ("float16", *RECIPES)


def rules_of(quantization: str | Sequence[QuantizationRule] | None) -> tuple[QuantizationRule, ...]:
    """Return the rules of a recipe or a list of rules; () for float32 and float16.

    Raises:
        InputError: if `quantization` is invalid.
    """
    if quantization is None or quantization == "float16":
        return ()
    if isinstance(quantization, str) and quantization in RECIPES:
        return RECIPES[quantization]
    if isinstance(quantization, (list, tuple)) and quantization:
        rules = tuple(rule for rule in quantization if isinstance(rule, QuantizationRule))
        if len(rules) == len(quantization):
            return rules
    raise InputError(
        f"`quantization` must be None, one of {', '.join(NAMES)}, or a list of QuantizationRule; "
        f"got {quantization!r}."
    )


def rule_for(rules: Sequence[QuantizationRule], name: str, width: int) -> QuantizationRule | None:
    """Return the rule of a matmul with `width` input channels; None means float32."""
    rule = next((rule for rule in reversed(rules) if re.search(rule.layers, name)), None)
    if rule is None or rule.bits == 32:
        return None
    if rule.block and width % rule.block:
        return QuantizationRule(layers=re.escape(name), kind=rule.kind)
    return rule
