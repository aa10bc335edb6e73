"""Weights in fewer bits, by rules that name layers.

Run as a module in a process of its own, on a float32 file:

    python -m keras_llm.export.quantize IN.tflite OUT.tflite RULES.json [CALIBRATION.npz]
"""

import dataclasses
import json
import re
import sys

import numpy as np

from keras_llm.errors import InputError

KINDS = ("dynamic", "weight_only", "static")
_BLOCKS = (None, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class QuantizationRule:
    """How the matrix products and embeddings of some layers are quantised.

    Args:
        layers: str, a regular expression, searched for in the names of layers as the file has
            them: "block_3/feed_forward...", "embedding_0", "head". Of several rules that fit, the
            last counts.
        bits: 8 or 4, of the weights; 32 leaves them as they are.
        block: None for one scale for each output channel; 32, 64, 128 or 256 for one for each
            block of so many weights of a channel (4 bits only).
        kind: "dynamic", where activations are rounded to 8 bits as they come, and products are
            integers; "weight_only", where weights are widened again before a product in float32;
            or "static", where the range of activations is fixed beforehand from calibration text.

    Raises:
        InputError: naming the argument that is wrong.
    """

    layers: str = ""
    bits: int = 8
    block: int | None = None
    kind: str = "dynamic"

    def __post_init__(self):
        try:
            re.compile(self.layers)
        except (re.error, TypeError) as error:
            raise InputError(f"`layers` must be a regular expression: {error}.") from None
        if self.bits not in (4, 8, 32):
            raise InputError(f"`bits` must be 4, 8 or 32, got {self.bits!r}.")
        if self.block not in _BLOCKS or (self.block and self.bits != 4):
            raise InputError(f"`block` must be None, or with 4 bits {_BLOCKS[1:]}.")
        if self.kind not in KINDS:
            raise InputError(f"`kind` must be one of {KINDS}, got {self.kind!r}.")


_TABLES = "embedding_[0-9]+$|/head$"
RECIPES = {
    "int8": (QuantizationRule(),),
    "int8_weight_only": (QuantizationRule(kind="weight_only"),),
    "int8_static": (QuantizationRule(), QuantizationRule(layers="block_", kind="static")),
    "int4": (QuantizationRule(bits=4, block=32), QuantizationRule(layers=_TABLES)),
}
NAMES = ("float16", *RECIPES)


def rules_of(quantization):
    """The rules of a named recipe, or those given; () for float32 and float16.

    Raises:
        InputError: if there is no such recipe.
    """
    if quantization is None or quantization == "float16":
        return ()
    if isinstance(quantization, str) and quantization in RECIPES:
        return RECIPES[quantization]
    if isinstance(quantization, (list, tuple)) and quantization:
        if all(isinstance(rule, QuantizationRule) for rule in quantization):
            return tuple(quantization)
    raise InputError(
        f"`quantization` must be None, one of {', '.join(NAMES)}, or a list of QuantizationRule; "
        f"got {quantization!r}."
    )


def quantize(source, out, rules, calibration=None):
    """Quantise a float32 file.

    Args:
        source, out: paths of `.tflite` files.
        rules: `QuantizationRule`s.
        calibration: dict signature -> list of dicts of inputs, needed by a "static" rule.
    """
    from ai_edge_quantizer import qtyping, quantizer

    operations = qtyping.TFLOperationName
    work = quantizer.Quantizer(source)
    for rule in rules:
        # The quantizer searches for names that begin so.
        pattern = f".*(?:{rule.layers})"
        granularity = f"BLOCKWISE_{rule.block}" if rule.block else "CHANNELWISE"
        granularity = qtyping.QuantGranularity[granularity]
        for operation in (operations.FULLY_CONNECTED, operations.EMBEDDING_LOOKUP):
            if rule.bits == 32:
                work.update_quantization_recipe(
                    regex=pattern, operation_name=operation, algorithm_key="no_quantize"
                )
            elif rule.kind == "static" and operation == operations.FULLY_CONNECTED:
                work.add_static_config(pattern, operation, 8, rule.bits, granularity)
            elif rule.kind == "weight_only" and operation == operations.FULLY_CONNECTED:
                work.add_weight_only_config(pattern, operation, rule.bits, granularity)
            else:  # a lookup has no product: its rows are widened as they are read
                work.add_dynamic_config(pattern, operation, rule.bits, granularity)
    ranges = work.calibrate(calibration) if work.need_calibration else None
    work.quantize(ranges).export_model(out, overwrite=True)


def _main(source, out, rules, calibration=None):
    with open(rules, encoding="utf-8") as file:
        rules = [QuantizationRule(**row) for row in json.load(file)]
    samples = {}
    if calibration:
        with np.load(calibration) as arrays:
            for name in sorted(arrays.files):
                signature, index, tensor = name.split("|")
                rows = samples.setdefault(signature, {})
                rows.setdefault(int(index), {})[tensor] = arrays[name]
    quantize(source, out, rules, {s: [rows[i] for i in sorted(rows)] for s, rows in samples.items()})


if __name__ == "__main__":
    _main(*sys.argv[1:])
