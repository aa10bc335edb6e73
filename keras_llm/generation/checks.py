"""Check the arguments of the functions that generate text."""

import math
import numbers
from typing import Any

import numpy as np
from keras import ops

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


def check_only_bias(function: str, sampling: Any) -> None:
    """Raise InputError if a setting other than `logit_bias`, `temperature` and `seed` is on.

    Tensors in compiled code are not checked.
    """
    for name, value in sampling._asdict().items():
        if name in ("temperature", "seed", "logit_bias"):
            continue
        if name == "constraint":
            is_on = bool(value)
        else:
            off = -1 if name == "forced_tokens" else sampling._field_defaults[name]
            try:
                is_on = value is not None and bool(np.any(ops.convert_to_numpy(value) != off))
            except (NotImplementedError, TypeError):  # compiled code
                continue
        if is_on:
            raise InputError(f"{function}: `{name}` is not supported.")
