"""Convert tasks to TFLite models: check the arguments, trace, lower, quantize and write."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.export import children, verification
from keras_llm.export.litert import decoder_graphs, head_graphs, weights
from keras_llm.export.litert.head_graphs import MASKS, SIGNATURES
from keras_llm.export.litert.lowering import flatbuffer
from keras_llm.export.litert.lowering.trace import Trace, computes_in, in_float32
from keras_llm.export.litert.quantization import rounding
from keras_llm.export.litert.quantization.calibration import Calibration, groups_of
from keras_llm.export.litert.quantization.rules import QuantizationRule, rules_of
from keras_llm.export.litert.quantization.smooth_quant import balance
from keras_llm.export.litert.verify import LiteRTVerification, check_texts
from keras_llm.export.litert.verify_decoder import DecoderVerification, TranslationVerification
from keras_llm.export.litert.verify_heads import (
    AnswerVerification,
    HeadVerification,
    MaskVerification,
)
from keras_llm.export.progress import Progress
from keras_llm.export.saved_model.signatures import check_whole
from keras_llm.export.verification import free_memory
from keras_llm.layers._handlers_of_keras import UNROLLED
from keras_llm.models.decoder import decoder_of
from keras_llm.tasks import Task, TextGeneration, Translation
from keras_llm.tasks.generative import GenerativeTask
from keras_llm.types import JSON, PathLike

_PREFILL_LENGTHS = (16, 128)
# A step that attends to fewer cache slots is faster; each length adds a graph without weights.
_DECODE_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
_LARGE = 50_000_000  # weights
_MEMORY = 4 << 30  # bytes that the converter may allocate; weightless graphs take a tenth of it
_VERIFICATIONS = {
    "TextGeneration": DecoderVerification,
    "Translation": TranslationVerification,
    "TextClassification": HeadVerification,
    "TokenClassification": HeadVerification,
    "TextEmbedding": HeadVerification,
    "TextRegression": HeadVerification,
    "QuestionAnswering": AnswerVerification,
    "MaskedLanguageModel": MaskVerification,
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The checked arguments of an export to a TFLite model.

    Attributes:
        task: the reference task that the file is compared with, in float32 if the file is.
        traced: pair of a task to trace, in float32, and its weights; see `trace.in_float32`.
        quantization: the user's argument.
        rules: tuple of `QuantizationRule`.
        manifest: dict of JSON values that is stored in the file.
        calibration: list of str, or None.
    """

    task: Task
    traced: tuple[Task, list[tuple[Any, Any]]]
    quantization: str | Sequence[QuantizationRule] | None
    rules: tuple[QuantizationRule, ...]
    manifest: JSON
    calibration: Sequence[str] | None

    def checks(
        self, caller: str, held_out: Sequence[Any] | None, max_quality_loss: float | None
    ) -> LiteRTVerification:
        """Return the `LiteRTVerification` of the file; InputError if an argument is invalid."""
        return _VERIFICATIONS[self.manifest["task"]](self, caller, held_out, max_quality_loss)

    @functools.cached_property
    def samples(self) -> list[str]:
        """Return prompts sampled from the model, a list of str."""
        if isinstance(self.task, TextGeneration):
            prompts = verification.probe_prompts(self.task)
            if self.quantization is not None and self.is_large:
                self.task.release()  # the task generates no more texts
            return prompts
        return list(verification.SEED_TEXTS)

    @property
    def is_large(self) -> bool:
        """Whether memory counts more than the second that freeing it takes."""
        return self.task.model.count_params() > _LARGE

    def calibration_rows(self) -> list[list[int]]:
        """Return rows of token ids to record activations; for an encoder-decoder, source rows."""
        tokenizer = self.task.tokenizer
        texts = self.samples if self.calibration is None else self.calibration
        if isinstance(self.task, TextGeneration):
            return [tokenizer.encode_prompt(text) for text in texts]
        return [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]

    @property
    def needs_calibration(self) -> bool:
        """Whether a rule requires static ranges of activations."""
        return any(rule.kind == "static" for rule in self.rules)

    @property
    def weights(self) -> str | list[JSON]:
        """The description of the weights in a report."""
        if self.quantization is None:
            return "float32"
        if isinstance(self.quantization, str):
            return self.quantization
        return [dataclasses.asdict(rule) for rule in self.rules]


def plan(
    caller: str,
    task: Task,
    quantization: str | Sequence[QuantizationRule] | None,
    prefill_lengths: Sequence[int] | None,
    cache_length: int | None,
    calibration: Sequence[str] | None,
) -> Plan:
    """Check the arguments of an export and return its `Plan`.

    Raises:
        InputError: if an argument is invalid; the message begins with `caller`.
    """
    check_whole(caller, task)
    name = type(task).__name__
    if not isinstance(task, (TextGeneration, Translation)) and name not in SIGNATURES:
        kinds = ", ".join(["TextGeneration", "Translation", *SIGNATURES])
        raise InputError(f"{caller}: `task` must be one of {kinds}, got a {name}.")
    rules = rules_of(quantization)
    longest = getattr(task, "max_length", task.model.config.max_length)
    max_length = longest if cache_length is None else cache_length
    if not isinstance(max_length, int) or not 2 <= max_length <= longest:
        raise InputError(
            f"{caller}: `cache_length` must be in 2 .. {longest}, the model's `max_length`; "
            f"got {cache_length!r}."
        )
    manifest = {"task": name, "max_length": max_length}
    if name in SIGNATURES:
        manifest |= _head_manifest(caller, task, cache_length, prefill_lengths)
    else:
        manifest |= _decoder_manifest(caller, task, max_length, prefill_lengths)
    checked_plan = Plan(
        _reference(task, quantization),
        in_float32(task),
        quantization,
        rules,
        manifest,
        calibration,
    )
    if calibration is not None:
        check_texts(caller, "calibration", calibration)
    if checked_plan.needs_calibration:
        if calibration is None:
            raise InputError(f"{caller}: this `quantization` requires `calibration` texts.")
        if name in SIGNATURES:
            raise InputError(
                f'{caller}: a "static" `quantization` is only supported for generative models.'
            )
    return checked_plan


def _decoder_manifest(caller, task, max_length, prefill_lengths):
    if prefill_lengths is None:
        prefill_lengths = sorted({min(length, max_length) for length in _PREFILL_LENGTHS})
    if decoder_of(task.model).has_states:
        prefill_lengths = [n for n in prefill_lengths if n <= UNROLLED]
    if not prefill_lengths or not all(0 < length <= max_length for length in prefill_lengths):
        raise InputError(
            f"{caller}: `prefill_lengths` must be in 1 .. {max_length}, got {prefill_lengths}."
        )
    # The runtime writes whole chunks, so leave room for a chunk that begins at the last position.
    slots = max_length + max(prefill_lengths)
    manifest = {
        "cache_slots": slots,
        "prefill_lengths": list(prefill_lengths),
        "decode_lengths": [n for n in _DECODE_LENGTHS if 3 * n <= 2 * slots],
        "end_token_ids": [index for index in task.end_token_ids if index >= 0],
        "vocabulary_size": task.model.config.vocabulary_size,
    }
    if isinstance(task, Translation):
        config = task.model.config
        manifest |= {"encoder_length": max_length, "pad_id": config.pad_id}
        manifest["start_id"] = config.start_id
    if task.metadata.get("chat_template"):
        manifest["chat_template"] = task.metadata["chat_template"]
    return manifest


def _head_manifest(caller, task, cache_length, prefill_lengths):
    name = type(task).__name__
    if prefill_lengths is not None:
        raise InputError(f"{caller}: `prefill_lengths` is only supported for generative models.")
    if cache_length is not None and name == "QuestionAnswering":
        raise InputError(
            f"{caller}: a {name} does not support `cache_length`; it reads a context in windows of "
            "the model's `max_length`."
        )
    manifest = {"signature": SIGNATURES[name], "begin": task.begin, "end": task.end}
    if name in ("TextClassification", "TokenClassification"):
        manifest["labels"] = task.labels
    if name == "QuestionAnswering":
        manifest |= {"separators": task.separators, "longest_answer": task.longest_answer}
        manifest["unanswerable"] = task.unanswerable
    if name == "MaskedLanguageModel":
        manifest["masks"] = MASKS
    return manifest


def lowering_child() -> children.Child:
    """Return the child process that lowers graphs."""
    return children.child(
        "keras_llm.export.litert.lowering.worker", "that lowers the graph", timeout=900
    )


@contextlib.contextmanager
def processes() -> Iterator[tuple[children.Child, children.Child]]:
    """Start the child processes of an export: one lowers graphs, one runs the exported file."""
    with (
        lowering_child() as lowering,
        children.child("keras_llm.export.litert.worker", "that runs the file") as running,
    ):
        yield lowering, running


def build(
    plan: Plan,
    path: PathLike,
    child: children.Child,
    progress: Progress,
    meanwhile: Callable[[], Any] | None,
) -> Any:
    """Trace, lower and write the TFLite model of a plan.

    Args:
        plan: a `Plan`.
        path: path of the file to write; an existing file is replaced.
        child, progress, meanwhile: as in `lower`.

    Returns:
        The result of `meanwhile`.
    """
    model, result = lower(plan, child, progress, meanwhile)
    write(plan, model, path, progress)
    del model
    if plan.is_large:
        free_memory()
    return result


def lower(
    plan: Plan,
    child: children.Child,
    progress: Progress,
    meanwhile: Callable[[], Any] | None = None,
) -> tuple[flatbuffer.Model, Any]:
    """Trace and lower the graphs of a plan.

    Args:
        plan: a `Plan`.
        child: the `children.Child` that lowers graphs.
        progress: a `Progress`.
        meanwhile: function without arguments that is called while the child works, or None.

    Returns:
        A `flatbuffer.Model` and the result of `meanwhile`.

    Raises:
        ExportError: if the converter fails, with its error message.
    """
    signatures = _trace(plan, progress)
    with progress.phase("lower"):
        _send(signatures, child)
    with progress.phase("verify"):
        result = None if meanwhile is None else meanwhile()
    with progress.phase("lower"):
        child.result()
        lowered = [(s, (child.folder / f"{s.name}.tflite").read_bytes()) for s in signatures]
        child.close()
        model = flatbuffer.Model(lowered, tables=bool(plan.rules))
        progress.part("lower", 1.0)
    return model, result


def write(plan: Plan, model: flatbuffer.Model, path: PathLike, progress: Progress) -> None:
    """Write the TFLite model of a plan.

    Args:
        plan: a `Plan`.
        model: from `lower`; it cannot be used again.
        path: path of the file to write; an existing file is replaced.
        progress: a `Progress`.
    """
    with progress.phase("quantize"):
        _quantize(plan, model)
        progress.part("quantize", 1.0)
    with progress.phase("write"):
        whole = max(1, plan.task.model.count_params())
        weights.write(model, path, lambda size: progress.part("write", size / whole))


def _trace(plan, progress):
    """Trace the signatures of a plan and return a list of `lowering.trace.Traced`."""
    task, weights = plan.traced
    if "signature" in plan.manifest:
        functions = head_graphs.signatures(task, plan.manifest["max_length"])
    else:
        functions = decoder_graphs.signatures(task.model, plan.manifest)
    with progress.phase("trace"):
        signatures = []
        for name, (function, inputs) in functions.items():
            signatures.append(Trace(function, inputs, weights).signature(name))
            progress.part("trace", 1 / len(functions))
    return signatures


def _send(signatures, child):
    """Send the graphs of signatures to the child that lowers them."""
    rows = []
    for traced in signatures:
        graph = traced.graph.graph.as_graph_def()
        (child.folder / f"{traced.name}.pb").write_bytes(graph.SerializeToString())
        names = [[t.name for t in part] for part in (traced.graph.inputs, traced.graph.outputs)]
        rows.append({"name": traced.name, "inputs": names[0], "outputs": names[1]})
    child.send({"memory": _MEMORY, "graphs": rows})


def _quantize(plan, model):
    """Set the storage of each weight; for decoders, run calibration texts if the rules use them."""
    if plan.quantization == "float16":
        rounding.in_float16(model)
    if not plan.rules:
        return
    ranges = None
    if "signature" not in plan.manifest:
        calibration = Calibration(*plan.traced, plan.manifest, plan.calibration_rows())
        groups = groups_of(model)
        if any(rule.bits != 32 and rule.kind != "weight_only" for rule in plan.rules):
            balance(model, groups, calibration)
        if plan.needs_calibration:
            ranges = calibration.ranges(groups, model.biases())
    rounding.apply(model, plan.rules, ranges)
    if "signature" not in plan.manifest and any(rule.bits == 4 for rule in plan.rules):
        rounded = [[c for c in group if getattr(c.storage, "bits", None) == 4] for group in groups]
        calibration.round_later_columns([group for group in rounded if group])


def _reference(task, quantization):
    """Return the task that the file is compared with, in float32 if the file is."""
    if isinstance(task, GenerativeTask):
        task = task.without_xla()  # XLA would take longer to compile than a few texts take
    if quantization is not None or computes_in(task.model, "float32"):
        return task
    row = models.describe(task.model)
    model = models.restore({**row, "dtype": "float32"})
    model.set_weights(task.model.get_weights())
    task = type(task)(model, task.tokenizer, metadata=task.metadata)
    return task.without_xla() if isinstance(task, GenerativeTask) else task
