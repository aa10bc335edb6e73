"""Define the sampling settings in one place: names, types, defaults and ranges.

Python, the command line, SavedModels, the LiteRT runtime, the client and the server use this
table. It does not import Keras or TensorFlow.
"""

import dataclasses
import math
import numbers
import struct
from collections.abc import Mapping
from typing import Any

from keras_llm.errors import InputError

MAX_NEW_TOKENS = 64  # default


@dataclasses.dataclass(frozen=True)
class Setting:
    """A numeric sampling setting.

    Attributes:
        default: int or float. Its type is the type of the setting.
        help: str, the description.
        minimum, maximum: numbers, the range; None for unbounded.
        above_minimum: bool. Whether the minimum is excluded.
    """

    default: int | float
    help: str
    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False

    @property
    def dtype(self) -> str:
        """The dtype of the setting as a tensor."""
        return "int32" if isinstance(self.default, int) else "float32"

    @property
    def rule(self) -> str:
        """The range in words, to follow "must be"."""
        if self.maximum is not None:
            return f"in {'(' if self.above_minimum else '['}{self.minimum}, {self.maximum}]"
        name = "an int" if isinstance(self.default, int) else "a number"
        if self.minimum is None:
            return "a 32-bit int" if isinstance(self.default, int) else name
        return f"{name} {'>' if self.above_minimum else '>='} {self.minimum}"

    def in_range(self, value: Any) -> Any:
        """Return whether finite numbers are in range, elementwise for a tensor."""
        result = value == value  # true, with the shape of the value
        if self.minimum is not None and self.above_minimum:
            result = result & (value > self.minimum)
        elif self.minimum is not None:
            result = result & (value >= self.minimum)
        if self.maximum is not None:
            result = result & (value <= self.maximum)
        return result

    def accepts(self, value: object) -> bool:
        """Return whether a Python value has the right type and is in range."""
        if isinstance(value, bool):
            return False
        if isinstance(self.default, int):
            is_number = isinstance(value, numbers.Integral) and -(2**31) <= int(value) < 2**31
        else:
            value = _as_float32(value) if isinstance(value, numbers.Real) else math.nan
            is_number = math.isfinite(value)
        return is_number and bool(self.in_range(value))


def _as_float32(value: numbers.Real) -> float:
    """Round a number to float32, infinite beyond its range."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.inf


SETTINGS = {
    "temperature": Setting(1.0, "Sampling temperature; 0 is greedy decoding.", minimum=0),
    "top_k": Setting(0, "Sample from the k most likely tokens; 0 is off.", minimum=0),
    "top_p": Setting(
        1.0,
        "Sample from the smallest set of tokens with this total probability; 1 is off.",
        minimum=0,
        maximum=1,
        above_minimum=True,
    ),
    "seed": Setting(0, "The same seed gives the same text."),
    "min_p": Setting(
        0.0,
        "Sample from tokens with at least this fraction of the highest probability; 0 is off.",
        minimum=0,
        maximum=1,
    ),
    "typical_p": Setting(
        1.0,
        "Sample from the most typical tokens with this total probability; 1 is off.",
        minimum=0,
        maximum=1,
        above_minimum=True,
    ),
    "repetition_penalty": Setting(
        1.0,
        "Values above 1 make tokens of the prompt and the new text less likely; 1 is off.",
        minimum=0,
        above_minimum=True,
    ),
    "presence_penalty": Setting(
        0.0, "Subtracted from the logits of tokens that the new text contains."
    ),
    "frequency_penalty": Setting(
        0.0, "Subtracted from the logit of a token for each time the new text contains it."
    ),
    "no_repeat_ngram_size": Setting(0, "No n-gram of this size occurs twice; 0 is off.", minimum=0),
    "min_new_tokens": Setting(0, "The text does not end before this many new tokens.", minimum=0),
}
DEFAULTS: dict[str, Any] = {name: setting.default for name, setting in SETTINGS.items()}


def check(values: Mapping[str, object]) -> None:
    """Check Python values of settings.

    Args:
        values: dict of setting name to value.

    Raises:
        InputError: if a value has the wrong type or is out of range, naming the setting.
    """
    for name, value in values.items():
        if not SETTINGS[name].accepts(value):
            raise InputError(f"`{name}` must be {SETTINGS[name].rule}, got {value!r}.")
