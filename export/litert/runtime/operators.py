"""List the TFLite operators that exports may write, with the types of their tensors."""

from collections.abc import Sequence
from typing import NamedTuple

_INTS, _BOOL = (2, 4), 6  # tensor types in the schema


class Operator(NamedTuple):
    """A builtin operator.

    Types are strings with a letter for each tensor: "T" is the same type for all of them, "I" is
    int32 or int64, "B" is bool, and "*" is any type. "+" repeats the letter before it, and "?"
    makes it optional.

    Attributes:
        code: int, its number in the schema.
        inputs, outputs: str, the types.
        options: int, the type of its options in the schema if they are checked, else 0.
    """

    code: int
    inputs: str
    outputs: str = "T"
    options: int = 0

    def takes(self, inputs: Sequence[int], outputs: Sequence[int]) -> bool:
        """Return whether the operator takes tensors of these types in the schema."""
        common: set[int] = set()
        pairs = ((self.inputs, inputs), (self.outputs, outputs))
        return all(_fit(letters, types, common) for letters, types in pairs) and len(common) <= 1


def _fit(letters, types, common):
    """Return whether types fit; add those of the letter "T" to `common`."""
    if letters.endswith("+"):
        letters = letters[:-1] + letters[-2] * (len(types) - len(letters) + 1)
    elif letters.endswith("?"):
        letters = letters[: -2 if len(types) < len(letters) - 1 else -1]
    if len(letters) != len(types):
        return False
    common.update(kind for letter, kind in zip(letters, types, strict=True) if letter == "T")
    expected = {"I": _INTS, "B": (_BOOL,)}
    return all(
        letter not in expected or kind in expected[letter]
        for letter, kind in zip(letters, types, strict=True)
    )


_ELEMENTWISE = {
    **{"ABS": 101, "CEIL": 104, "COS": 108, "ELU": 111, "EXP": 47, "FLOOR": 8, "GELU": 150},
    **{"HARD_SWISH": 117, "LEAKY_RELU": 98, "LOG": 73, "LOGISTIC": 14, "LOG_SOFTMAX": 50},
    **{"NEG": 59, "RELU": 19, "RELU6": 21, "ROUND": 116, "RSQRT": 76, "SIGN": 158, "SIN": 66},
    **{"SOFTMAX": 25, "SQRT": 75, "SQUARE": 92, "SQUEEZE": 43, "TANH": 28},
}
_CONVERSIONS = {"CAST": 53, "DEQUANTIZE": 6, "QUANTIZE": 114}
_BINARY = {"MAXIMUM": 55, "MINIMUM": 57, "POW": 78, "SQUARED_DIFFERENCE": 99}
_COMPARISONS = {
    **{"EQUAL": 71, "GREATER": 61, "GREATER_EQUAL": 62, "LESS": 58, "LESS_EQUAL": 63},
    **{"NOT_EQUAL": 72},
}
_BY_AXES = {
    **{"BROADCAST_TO": 130, "CUMSUM": 128, "EXPAND_DIMS": 70, "GATHER": 36, "MEAN": 40, "PAD": 34},
    **{"REDUCE_MAX": 82, "REDUCE_MIN": 89, "SUM": 74, "TILE": 69, "TRANSPOSE": 39},
}
OPERATORS = {
    **{name: Operator(code, "T") for name, code in _ELEMENTWISE.items()},
    **{name: Operator(code, "*", "*") for name, code in _CONVERSIONS.items()},
    **{name: Operator(code, "TT") for name, code in _BINARY.items()},
    **{name: Operator(code, "TT", "B") for name, code in _COMPARISONS.items()},
    **{name: Operator(code, "TI") for name, code in _BY_AXES.items()},
    "ADD": Operator(0, "TT", options=11),
    "ARG_MAX": Operator(56, "*I", "I"),
    "BATCH_MATMUL": Operator(126, "**", "*"),
    "CONCATENATION": Operator(2, "T+", options=10),
    "DIV": Operator(42, "TT", options=29),
    "DYNAMIC_UPDATE_SLICE": Operator(151, "TTI"),
    "EMBEDDING_LOOKUP": Operator(7, "I*", "*"),
    "FULLY_CONNECTED": Operator(9, "***?", "*", options=8),
    "LOGICAL_AND": Operator(86, "BB", "B"),
    "LOGICAL_NOT": Operator(87, "B", "B"),
    "LOGICAL_OR": Operator(84, "BB", "B"),
    "MUL": Operator(18, "TT", options=21),
    "ONE_HOT": Operator(85, "IITT"),
    "PACK": Operator(83, "T+", options=59),
    "PADV2": Operator(60, "TIT"),
    "REDUCE_ALL": Operator(140, "BI", "B"),
    "REDUCE_ANY": Operator(91, "BI", "B"),
    "RESHAPE": Operator(22, "TI?"),
    "SELECT": Operator(64, "BTT"),
    "SELECT_V2": Operator(123, "BTT"),
    "SLICE": Operator(65, "TII"),
    "SPLIT": Operator(49, "IT", "T+", options=35),
    "STRIDED_SLICE": Operator(45, "TIII"),
    "SUB": Operator(41, "TT", options=28),
    "TOPK_V2": Operator(48, "TI", "TI"),
    "UNPACK": Operator(88, "T", "T+", options=64),
}
"""The operators by name. Add a row for one that the converter newly writes."""
