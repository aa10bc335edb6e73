"""A task as a TFLite model: what to write, writing it, quantising it."""

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.export import parity, rewrite
from keras_llm.export.decoder_proof import DecoderProof, TranslationProof
from keras_llm.export.device_graphs import DecoderStepModule
from keras_llm.export.device_proof import check_texts
from keras_llm.export.head_graphs import MASKS, SIGNATURES, HeadModule
from keras_llm.export.head_proof import AnswerProof, HeadProof, MaskProof
from keras_llm.export.quantize import rules_of
from keras_llm.export.signatures import check_whole, save
from keras_llm.tasks import TextGeneration, Translation

_PREFILL_LENGTHS = (16, 128)
# A step that attends to fewer slots is faster; each costs a graph without weights.
_DECODE_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
# What the converter may allocate. With 538 MB of float32 weights it was seen at 4 GB; its peak was
# not measured.
_MEMORY = 4 << 30
_MEMORY_PER_WEIGHT = 64
_TIMEOUT = 3600
_PROOFS = {
    "TextGeneration": DecoderProof,
    "Translation": TranslationProof,
    "TextClassification": HeadProof,
    "TokenClassification": HeadProof,
    "TextEmbedding": HeadProof,
    "TextRegression": HeadProof,
    "QuestionAnswering": AnswerProof,
    "MaskedLanguageModel": MaskProof,
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        task: the task, its model in float32.
        quantization: as given by the user.
        rules: tuple of `QuantizationRule`.
        manifest: dict of JSON values that the file carries.
        calibration: list of str, or None.
    """

    task: object
    quantization: object
    rules: tuple
    manifest: dict
    calibration: list | None

    def proof(self, caller, held_out, max_quality_loss):
        """The `Proof` of the file; InputError if an argument is wrong."""
        return _PROOFS[self.manifest["task"]](self, caller, held_out, max_quality_loss)

    @functools.cached_property
    def samples(self):
        """Texts in the manner of the model, a list of str."""
        if isinstance(self.task, TextGeneration):
            return parity.probe_prompts(self.task)
        return list(parity.SEED_TEXTS)

    def calibration_rows(self):
        """Token ids that show a decoder's activations; of an encoder-decoder its source's."""
        tokenizer = self.task.tokenizer
        texts = self.samples if self.calibration is None else self.calibration
        if isinstance(self.task, TextGeneration):
            return [tokenizer.encode_prompt(text) for text in texts]
        return [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]

    @property
    def needs_calibration(self):
        """Whether a rule fixes the range of activations beforehand."""
        return any(rule.kind == "static" for rule in self.rules)

    @property
    def weights(self):
        """How the weights are told of in a report."""
        if self.quantization is None:
            return "float32"
        if isinstance(self.quantization, str):
            return self.quantization
        return [dataclasses.asdict(rule) for rule in self.rules]


def plan(caller, task, quantization, prefill_lengths, cache_length, calibration):
    """The checked `Plan`.

    Raises:
        InputError: naming the argument that is wrong, `caller` first.
    """
    check_whole(caller, task)
    name = type(task).__name__
    if not isinstance(task, (TextGeneration, Translation)) and name not in SIGNATURES:
        kinds = ", ".join(["TextGeneration", "Translation", *SIGNATURES])
        raise InputError(f"{caller}: `task` must be one of {kinds}, got a {name}.")
    rules = rules_of(quantization)
    longest = task.model.config.max_length
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
    made = Plan(_in_float32(task), quantization, rules, manifest, calibration)
    if calibration is not None:
        check_texts(caller, "calibration", calibration)
    if made.needs_calibration:
        if calibration is None:
            raise InputError(f"{caller}: this `quantization` needs `calibration` texts.")
        if name in SIGNATURES:
            raise InputError(f'{caller}: a "static" `quantization` is for models that write text.')
        manifest["decode_lengths"] = []  # every graph would need texts of its own
    return made


def _decoder_manifest(caller, task, max_length, prefill_lengths):
    if prefill_lengths is None:
        prefill_lengths = sorted({min(length, max_length) for length in _PREFILL_LENGTHS})
    if not prefill_lengths or not all(0 < length <= max_length for length in prefill_lengths):
        raise InputError(
            f"{caller}: `prefill_lengths` must be in 1 .. {max_length}, got {prefill_lengths}."
        )
    # The runtime writes whole chunks: room for one that begins at the last position.
    slots = max_length + max(prefill_lengths)
    manifest = {
        "cache_slots": slots,
        "prefill_lengths": list(prefill_lengths),
        "decode_lengths": [n for n in _DECODE_LENGTHS if 3 * n <= 2 * slots],
        "end_token_ids": [index for index in task.end_token_ids if index >= 0],
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
        raise InputError(f"{caller}: `prefill_lengths` is for models that write text.")
    if cache_length is not None and name == "QuestionAnswering":
        raise InputError(
            f"{caller}: a {name} reads in windows of the model's `max_length`; `cache_length` is "
            "not for it."
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


def write(plan, path):
    """Write the TFLite model of a plan.

    Args:
        plan: a `Plan`.
        path: where to; replaced if it is there.

    Raises:
        ExportError: with the words of the converter, if it fails.
    """
    task, manifest = plan.task, plan.manifest
    if "signature" in manifest:
        module = HeadModule(task, manifest["max_length"])
    else:
        module = DecoderStepModule(
            task.model,
            manifest["cache_slots"],
            manifest["prefill_lengths"],
            manifest["decode_lengths"],
            manifest.get("encoder_length"),
        )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        signatures = save(module, folder / "saved_model")
        target = folder / "float32.tflite" if plan.rules else path
        memory = _MEMORY + _MEMORY_PER_WEIGHT * task.model.count_params()
        weights = "float16" if plan.quantization == "float16" else "float32"
        arguments = [str(folder / "saved_model"), str(target), weights, str(memory), *signatures]
        parity.run_module("keras_llm.export.convert", arguments, _TIMEOUT)
        if plan.rules:
            _quantize(plan, target, path, folder)


def _quantize(plan, source, path, folder):
    rewrite.name_tables(source)
    (folder / "rules.json").write_text(
        json.dumps([dataclasses.asdict(rule) for rule in plan.rules]), "utf-8"
    )
    target = folder / "quantised.tflite"
    arguments = [str(source), str(target), str(folder / "rules.json")]
    if "signature" not in plan.manifest:
        request = {"rows": plan.calibration_rows(), "manifest": plan.manifest}
        (folder / "calibration.json").write_text(json.dumps(request), "utf-8")
        arguments.append(str(folder / "calibration.json"))
    parity.run_module("keras_llm.export.quantize", arguments, _TIMEOUT)
    shutil.copyfile(target, path)  # with the permissions of any file


def _in_float32(task):
    """The task itself, or one with its model rebuilt in float32."""
    if all(layer.compute_dtype == "float32" for layer in _layers(task.model)):
        return task
    row = models.describe(task.model)
    model = models.restore({**row, "dtype": "float32"})
    model.set_weights(task.model.get_weights())
    return type(task)(model, task.tokenizer, metadata=task.metadata)


def _layers(model):
    """The layers of a model and of the models inside."""
    for layer in model.layers:
        yield from _layers(layer) if hasattr(layer, "layers") else [layer]
