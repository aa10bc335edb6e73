"""The sampling settings: names, types, defaults and ranges, stated once.

Python, the command line, SavedModels, the LiteRT runtime, the client and the server read this
table. It needs neither Keras nor TensorFlow.
"""

import dataclasses
import math
import numbers

from keras_llm.errors import InputError

MAX_NEW_TOKENS = 64  # the default


@dataclasses.dataclass(frozen=True)
class Setting:
    """One numeric sampling setting.

    Attributes:
        default: int or float. Its type is that of the setting.
        help: str, what it does.
        minimum, maximum: numbers, the range; None is unbounded.
        above_minimum: bool. Whether the minimum itself is excluded.
    """

    default: int | float
    help: str
    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False

    @property
    def dtype(self):
        """The dtype of the setting as a tensor."""
        return "int32" if isinstance(self.default, int) else "float32"

    @property
    def rule(self):
        """The range in words, to follow "must be"."""
        if self.maximum is not None:
            return f"in {'(' if self.above_minimum else '['}{self.minimum}, {self.maximum}]"
        name = "an int" if isinstance(self.default, int) else "a number"
        if self.minimum is None:
            return f"{name} of 32 bits" if isinstance(self.default, int) else name
        return f"{name} {'>' if self.above_minimum else '>='} {self.minimum}"

    def in_range(self, value):
        """Whether finite numbers are in range, for a number or elementwise for a tensor."""
        found = value == value  # true, in the shape of the value
        if self.minimum is not None and self.above_minimum:
            found = found & (value > self.minimum)
        elif self.minimum is not None:
            found = found & (value >= self.minimum)
        if self.maximum is not None:
            found = found & (value <= self.maximum)
        return found

    def accepts(self, value):
        """Whether a Python value has the right type and is in range."""
        if isinstance(value, bool):
            return False
        if isinstance(self.default, int):
            is_number = isinstance(value, numbers.Integral) and -(2**31) <= value < 2**31
        else:
            is_number = isinstance(value, numbers.Real) and math.isfinite(value)
        return is_number and bool(self.in_range(value))


SETTINGS = {
    "temperature": Setting(1.0, "0 takes the most likely token at each step.", minimum=0),
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
        "Above 1, tokens of the prompt and the new text become less likely; 1 is off.",
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
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}


def check(values):
    """Check Python values of settings.

    Args:
        values: dict of setting name to value.

    Raises:
        InputError: naming the first setting whose value has the wrong type or is out of range.
    """
    for name, value in values.items():
        if not SETTINGS[name].accepts(value):
            raise InputError(f"`{name}` must be {SETTINGS[name].rule}, got {value!r}.")
