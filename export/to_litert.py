"""A TFLite file that a phone's LiteRT runtime runs, builtin ops only."""

import json
import pathlib
import tempfile
import zipfile

import numpy as np

from keras_llm import models
from keras_llm.errors import ExportError, InputError
from keras_llm.export import parity
from keras_llm.export.device_graphs import DecoderStepModule
from keras_llm.export.report import write_report
from keras_llm.export.runner import MANIFEST, TOKENIZER
from keras_llm.export.signatures import save
from keras_llm.files import atomic_file
from keras_llm.tasks import TextGeneration

_LOGIT_TOLERANCE = 1e-3  # float32: largest difference of a logit, and of two that count as tied
_MEAN_KL_DIVERGENCE = 0.05  # quantised: nats, of Keras's next-token distribution from the file's
_PREFILL_LENGTHS = (16, 128)


def litert(task, path, quantization=None, prefill_lengths=None, overwrite=False):
    """Write a task as a `.tflite` file with `prefill_<T>` and `decode` signatures.

    Names and shapes are those that LiteRT-LM expects (see `device_graphs.DecoderStepModule`). The
    tokenizer rides behind the model's bytes as a zip archive, so `LiteRTModel(path)` needs this
    one file. Before the file gets its name it is run in a fresh process without Keras and
    TensorFlow, and its logits and greedy texts are compared with the task's.

    Args:
        task: a `TextGeneration`. A model in another precision is exported in float32.
        path: str or path that ends in `.tflite`.
        quantization: None for float32; "int8" or "float16" for weights in 8 or 16 bits, with
            activations in float32.
        prefill_lengths: ints, the chunk sizes in which a prompt can be read. Defaults to 16
            and 128, at most the model's `max_length`.
        overwrite: bool. Whether to replace the file.

    Returns:
        The report, a dict that is also kept in `export_report.json` beside the file, under its
        name: signatures, bytes, ops, errors against Keras and tokens per second.

    Raises:
        InputError: if an argument is wrong or the file exists.
        ExportError: if it cannot be converted to builtin ops or does not match the task;
            nothing is left behind.
    """
    path = pathlib.Path(path)
    if not isinstance(task, TextGeneration):
        raise InputError(f"litert: `task` must be a TextGeneration, got {type(task)}.")
    if path.suffix != ".tflite":
        raise InputError(f"litert: `path` must end in .tflite, got {path}.")
    if quantization not in (None, "int8", "float16"):
        raise InputError(
            f'litert: `quantization` must be None, "int8" or "float16", got {quantization!r}.'
        )
    task = _in_float32(task)
    max_length = task.model.config.max_length
    if prefill_lengths is None:
        prefill_lengths = sorted({min(length, max_length) for length in _PREFILL_LENGTHS})
    if not prefill_lengths or not all(0 < length <= max_length for length in prefill_lengths):
        raise InputError(
            f"litert: `prefill_lengths` must be in 1 .. {max_length}, got {prefill_lengths}."
        )
    manifest = {
        "max_length": max_length,
        # The runtime writes whole chunks: room for one that begins at the last position.
        "cache_length": max_length + max(prefill_lengths),
        "prefill_lengths": list(prefill_lengths),
    }
    with atomic_file(path, overwrite) as partial:
        _convert(task, partial, quantization, manifest)
        ops = _op_census(partial)
        model_bytes = partial.stat().st_size
        _append_files(partial, task.tokenizer, manifest)
        report = {
            "format": "litert",
            "quantization": quantization or "float32",
            **manifest,
            "bytes": {
                "model": model_bytes,
                "tokenizer": partial.stat().st_size - model_bytes,
                "total": partial.stat().st_size,
            },
            "ops": ops,
            **_verify(task, partial, quantization),
        }
    write_report(path.parent, path.name, report)
    return report


def _in_float32(task):
    if task.model.get_layer("block_0").compute_dtype == "float32":
        return task
    model = models.causal_lm(task.model.config, dtype="float32")
    model.set_weights(task.model.get_weights())
    return TextGeneration(model, task.tokenizer)


def _convert(task, path, quantization, manifest):
    module = DecoderStepModule(task.model, manifest["cache_length"], manifest["prefill_lengths"])
    with tempfile.TemporaryDirectory() as folder:
        signatures = save(module, folder)
        parity.run_module(
            "keras_llm.export.convert",
            [folder, str(path), quantization or "none", *signatures],
            timeout=1800,
        )


def _op_census(path):
    """Op name -> how often it occurs; ExportError if one is not builtin."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    codes = []
    for code in model.operatorCodes:
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        codes.append(code.customCode.decode() if code.customCode else names[builtin])
        if code.customCode or names[builtin] == "CUSTOM":
            raise ExportError(f"the op {codes[-1]} is not builtin in TFLite; nothing was written.")
    census = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = codes[operator.opcodeIndex]
            census[name] = census.get(name, 0) + 1
    return dict(sorted(census.items()))


def _append_files(path, tokenizer, manifest):
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "a") as archive:
        tokenizer.save(folder)
        archive.writestr(MANIFEST, json.dumps(manifest))
        for file in sorted(pathlib.Path(folder).iterdir()):
            archive.write(file, f"{TOKENIZER}/{file.name}")


def _verify(task, path, quantization):
    prompts = parity.probe_prompts(task)
    answer = parity.run_child("litert", path, {"prompts": prompts})
    logits = answer["logits"]
    expected = _keras_logits(task, prompts, answer["token_ids"], len(logits))
    # Ids that the model alone knows are never chosen, and so not compared.
    logits, expected = (x[:, : task.tokenizer.vocabulary_size] for x in (logits, expected))
    agreement = float(np.mean(logits.argmax(-1) == expected.argmax(-1)))
    measured = {"prompts": len(prompts), "steps": len(logits), "top_1_agreement": agreement}
    if quantization is None:
        chosen = np.take_along_axis(expected, logits.argmax(-1)[:, None], -1)[:, 0]
        parity.require_same("choices", chosen, expected.max(-1), _LOGIT_TOLERANCE)
        texts = task(prompts, max_new_tokens=parity.NEW_TOKENS, temperature=0.0)
        measured["greedy_texts_equal"] = answer["texts"] == texts  # False only through a tie
        measured["max_logit_error"] = parity.require_same(
            "logits", logits, expected, _LOGIT_TOLERANCE
        )
    else:
        divergence = _kl_divergence(expected, logits)
        if not divergence <= _MEAN_KL_DIVERGENCE:
            raise ExportError(
                f"the {quantization} model's predictions diverge from Keras's by "
                f"{divergence:.3g} nats, more than {_MEAN_KL_DIVERGENCE}; nothing was written."
            )
        measured["max_logit_error"] = float(np.abs(logits - expected).max())
        measured["mean_kl_divergence_nats"] = divergence
    return {
        "signatures": answer["signatures"],
        "parity": measured,
        "tokens_per_second": answer["tokens_per_second"],
    }


def _keras_logits(task, prompts, token_ids, steps):
    """Keras's logits (steps, V) where the exported model made each of its choices."""
    prompt_ids = [task.tokenizer.encode_prompt(prompt) for prompt in prompts]
    longest = max(len(old) + len(new) for old, new in zip(prompt_ids, token_ids, strict=True))
    batch = np.full((len(prompts), longest), task.tokenizer.pad_id, "int32")
    for row, old, new in zip(batch, prompt_ids, token_ids, strict=True):
        row[: len(old) + len(new)] = old + new
    rows = []
    logits = task.model.predict_on_batch(batch)
    for row, old, new in zip(logits, prompt_ids, token_ids, strict=True):
        budget = min(parity.NEW_TOKENS, task.model.config.max_length - len(old))
        choices = len(new) + (len(new) < budget)  # one more, where the model ended the text
        rows.append(row[len(old) - 1 :][:choices])
    rows = np.concatenate(rows)
    if len(rows) != steps:
        raise ExportError(f"the exported model made {steps} steps, Keras {len(rows)}.")
    return rows


def _kl_divergence(expected, found):
    def log_softmax(logits):
        logits = logits.astype("float64") - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(found)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))
