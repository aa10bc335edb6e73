"""Check the manifest of an exported file, and that its model has what the manifest describes."""

from typing import TYPE_CHECKING, Any

from keras_llm.errors import InputError
from keras_llm.json_files import check_fields
from keras_llm.types import JSON, PathLike

if TYPE_CHECKING:
    from keras_llm.export.litert.runtime.backends import CompiledRuntime, InterpreterRuntime

_FIELDS: dict[str, Any] = {"max_length": int, "model": list[int], "size": int, "crc32": int}
_DECODER: dict[str, Any] = {
    "cache_slots": int,
    "prefill_lengths": list[int],
    "decode_lengths": list[int],
    "end_token_ids": list[int],
}
_HEAD: dict[str, Any] = {"signature": str, "begin": list[int], "end": list[int]}
_OF_TASK: dict[str, dict[str, Any]] = {
    "TextGeneration": _DECODER,
    "Translation": {**_DECODER, "encoder_length": int, "pad_id": int, "start_id": int},
    "TextClassification": {**_HEAD, "labels": list[str]},
    "TokenClassification": {**_HEAD, "labels": list[str]},
    "QuestionAnswering": {**_HEAD, "separators": list[int], "longest_answer": int},
    "TextEmbedding": _HEAD,
    "TextRegression": _HEAD,
    "MaskedLanguageModel": {**_HEAD, "masks": int},
}
_OPTIONAL: dict[str, Any] = {"chat_template": str, "unanswerable": bool}
_OUTPUTS = {
    "TextClassification": ["probabilities"],
    "TokenClassification": ["probabilities"],
    "QuestionAnswering": ["start", "end"],
    "TextEmbedding": ["embedding"],
    "TextRegression": ["value"],
    "MaskedLanguageModel": ["logits"],
}


def check_manifest(path: PathLike, manifest: JSON) -> None:
    """Raise InputError unless the manifest has the fields of its task, and numbers in range."""
    check_fields(manifest, {"task": str}, path)
    if manifest["task"] not in _OF_TASK:
        raise InputError(f"{path}: `task` must be one of {', '.join(_OF_TASK)}.")
    optional = {name: kind for name, kind in _OPTIONAL.items() if name in manifest}
    fields = {**_FIELDS, **_OF_TASK[manifest["task"]], **optional}
    check_fields(manifest, fields, path)
    for name in fields:
        values = manifest[name] if isinstance(manifest[name], list) else [manifest[name]]
        if any(isinstance(value, int) and not 0 <= value < 2**53 for value in values):
            raise InputError(f"{path}: `{name}` must not be negative, got {manifest[name]}.")
    if len(manifest["model"]) != 2:
        raise InputError(f"{path}: `model` must be its begin and end, got {manifest['model']}.")


def check_signatures(
    path: PathLike, manifest: JSON, runtime: "CompiledRuntime | InterpreterRuntime"
) -> None:
    """Raise InputError unless a model has the signatures and shapes that its manifest describes."""
    length, outputs = manifest["max_length"], []
    if "signature" in manifest:
        key = manifest["signature"]
        shapes = [(key, "token_ids", (1, length)), (key, "lengths", (1,))]
        outputs = [(key, name) for name in _OUTPUTS[manifest["task"]]]
    else:
        slots = manifest["cache_slots"]
        rows = [(f"prefill_{n}", n, slots) for n in manifest["prefill_lengths"]]
        rows += [(f"decode_{n}", 1, n) for n in manifest["decode_lengths"]]
        rows.append(("decode", 1, slots))
        shapes = [(key, "mask", (1, 1, n, attended)) for key, n, attended in rows]
        shapes += [(key, "tokens", (1, n)) for key, n, _ in rows]
        outputs = [(key, "logits") for key, n, _ in rows if key.startswith("decode")]
        if not manifest["prefill_lengths"] or slots < length:
            raise InputError(f"{path}: `cache_slots` or `prefill_lengths` is too small.")
        if "encoder_length" in manifest:
            shapes.append(("encode", "encoder_tokens", (1, manifest["encoder_length"])))
    for key, name, shape in shapes:
        if runtime.inputs.get(key, {}).get(name, (None, None))[1] != shape:
            raise InputError(f"{path}: the signature {key!r} needs an input {name!r} of {shape}.")
    for key, name in outputs:
        if name not in runtime.outputs[key]:
            raise InputError(f"{path}: the signature {key!r} needs an output {name!r}.")
        classes = runtime.outputs[key][name][1][-1:]
        if "labels" in manifest and classes != (len(manifest["labels"]),):
            raise InputError(f"{path}: `labels` must be {classes} strs, one for each class.")
