"""Weights in fewer bits, by rules that name layers.

Run as a module in a process of its own, on a float32 file:

    python -m keras_llm.export.quantize IN.tflite OUT.tflite RULES.json [CALIBRATION.json]

The last names texts of a decoder, which change IN.tflite: where activations are rounded too, they
show how to balance them with the weights (see `balance`); where weights take 4 bits, how to round
them (see `gptq`).
"""

import dataclasses
import functools
import json
import re
import sys

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
            block of so many weights of a channel (4 bits only; layers whose width is no multiple
            of it take 8 bits and a scale for each channel).
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


_CALIBRATION_TEXTS, _CALIBRATION_STEPS = 16, 2  # each sample holds a whole cache
_TABLES = r"/embedding_\d+\b|/head\b"
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
        rules = tuple(rule for rule in quantization if isinstance(rule, QuantizationRule))
        if len(rules) == len(quantization):
            return rules
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
    rules = [*rules, *_undivided(source, rules)]
    work = quantizer.Quantizer(source)
    for rule in rules:
        pattern = rule.layers
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


def _undivided(path, rules):
    """Rules for the products whose width is no multiple of their block: a scale for each channel,
    8 bits.

    Raises:
        InputError: if an embedding and the head that shares its table have different rules.
    """
    from ai_edge_litert import schema_py_generated as schema

    with open(path, "rb") as file:
        model = schema.Model.GetRootAs(file.read(), 0)
    more, tables = {}, {}
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.OperatorsLength()):
            operator = graph.Operators(j)
            code = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
            if code not in (
                schema.BuiltinOperator.FULLY_CONNECTED,
                schema.BuiltinOperator.EMBEDDING_LOOKUP,
            ):
                continue
            name = graph.Tensors(operator.Outputs(0)).Name().decode()
            weights = graph.Tensors(operator.Inputs(1))
            if not model.Buffers(weights.Buffer()).DataLength():
                continue  # computed, not stored
            rule = _rule_of(rules, name)
            if rule and rule.block and weights.Shape(1) % rule.block:
                rule = more[name] = QuantizationRule(layers=re.escape(name), kind=rule.kind)
            how = rule and (rule.bits, rule.block)
            other, known = tables.setdefault(weights.Buffer(), (name, how))
            if known != how:
                raise InputError(
                    f"{other} and {name} share one table, which can have one rule only; got "
                    f"{known} and {how} (bits, block)."
                )
    return more.values()


def _rule_of(rules, name):
    return next((rule for rule in reversed(rules) if re.search(rule.layers, name)), None)


def _block_of(rules, name, width):
    """How many weights of a product share a scale of 4 bits; None if it has none."""
    rule = _rule_of(rules, name)
    if rule is None or rule.bits != 4 or width % (rule.block or width):
        return None
    return rule.block or width


def samples(path, rows, manifest):
    """Inputs of a decoder's signatures while it reads texts.

    Args:
        path: a `.tflite` file in float32.
        rows: lists of token ids; of an encoder-decoder of its source.
        manifest: as of `DecoderSteps`.

    Returns:
        dict signature -> list of dicts of inputs.
    """
    from keras_llm.export.decoder_steps import DecoderSteps
    from keras_llm.export.runtime import InterpreterRuntime

    seen = {}

    class Recorder(InterpreterRuntime):
        def _call(self, signature, inputs):
            seen.setdefault(signature, []).append(inputs)
            return super()._call(signature, inputs)

    decoder = DecoderSteps(Recorder(path, 0, None, None, True), manifest)
    is_decoder = "encoder_length" not in manifest
    for row in rows[:_CALIBRATION_TEXTS]:
        row = row[: manifest["max_length"] - _CALIBRATION_STEPS]
        if not is_decoder:
            decoder.encode(row)
            row = [manifest["start_id"]]
        for length in manifest["prefill_lengths"]:  # each is a graph of its own
            decoder.read(row[:length])
        decoder.read(row)
        for position in range(len(row), len(row) + _CALIBRATION_STEPS):
            row = [*row, int(decoder.step(row[-1], position - 1).argmax())]
    return seen


def _main(source, out, rules, calibration=None):
    with open(rules, encoding="utf-8") as file:
        rules = [QuantizationRule(**row) for row in json.load(file)]
    inputs = None
    if calibration:
        with open(calibration, encoding="utf-8") as file:
            request = json.load(file)
        if any(rule.bits != 32 and rule.kind != "weight_only" for rule in rules):
            from keras_llm.export.balance import balance

            balance(source, **request)
        if any(rule.bits == 4 for rule in rules):
            from keras_llm.export.gptq import gptq

            gptq(source, functools.partial(_block_of, rules), **request)
        if any(rule.kind == "static" for rule in rules):
            inputs = samples(source, **request)
    quantize(source, out, rules, inputs)


if __name__ == "__main__":
    _main(*sys.argv[1:])
