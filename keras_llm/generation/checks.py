"""Check the arguments of the functions that generate text."""

import math
import numbers
from typing import Any

from keras_llm.errors import InputError


def check_count(function: str, name: str, value: Any, most: float = math.inf) -> None:
    """Raise InputError unless `value` is an int in `1 .. most`."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_int or not 1 <= value <= most:
        rule = "an int > 0" if most == math.inf else f"an int in 1 .. {most}"
        raise InputError(f"{function}: `{name}` must be {rule}, got {value!r}.")


def check_number(
    function: str, name: str, value: Any, least: float = -math.inf, most: float = math.inf
) -> None:
    """Raise InputError unless `value` is a finite number in `least .. most`.

    Tensors are not checked.
    """
    if hasattr(value, "shape"):
        return
    is_number = isinstance(value, numbers.Real) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        bounds = f" in {least} .. {most}" if math.isfinite(least) else ""
        raise InputError(f"{function}: `{name}` must be a finite number{bounds}, got {value!r}.")
