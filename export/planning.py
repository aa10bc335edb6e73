"""Estimate the memory, time and file size of an export.

The estimates are based on measurements (docs/measurements.md, "Exports"): a constant for Python,
TensorFlow and the worker processes, and a part that grows with the weights and the graph.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras

from keras_llm import models
from keras_llm.errors import ExportError, InputError
from keras_llm.export.litert.quantization.rules import QuantizationRule, rule_for, rules_of
from keras_llm.models.config import TransformerConfig
from keras_llm.models.decoder import decoder_of
from keras_llm.models.deferred import shapes_only
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.tasks import Task

TARGETS = ("saved_model", "litert", "litert_lm")
_GB = 1_000_000_000
# Bytes: a process with TensorFlow and Keras; its graphs and the reference generation with Keras,
# plus a part for each block; the process that lowers graphs; activation statistics for int4.
_PARENT, _WORK, _WORK_PER_BLOCK = 0.7 * _GB, 0.5 * _GB, 0.025 * _GB
_LOWERING, _MOMENTS = 0.4 * _GB, 1.5 * _GB
# The process that runs the exported file: a constant, plus bytes for each byte of the file, because
# runtimes repack weights for their kernels. A part of a bundle is read into memory.
_RUNNING, _RUNNING_PER_BYTE = 0.35 * _GB, 2.5
_SERVING, _SERVING_PER_BYTE = 0.4 * _GB, 1.45
# Seconds for each block, in about five signatures, and for a billion weights, mostly verification.
_PER_BLOCK, _PER_BILLION = 1.3, 60.0


def plan_export(
    model: "TransformerConfig | keras.Model | Task",
    target: str = "litert_lm",
    quantization: str | Sequence[QuantizationRule] | None = None,
    max_length: int | None = None,
) -> JSON:
    """Estimate the resources that an export needs, without building the model.

    Args:
        model: a config such as `models.preset("gemma3-4b")`, a model or a task. For a config,
            the weights are assumed to be in bfloat16, as their publishers store them.
        target: "saved_model", "litert" or "litert_lm".
        quantization: as in `litert`; None for a SavedModel.
        max_length: int. Maximum number of tokens of a prompt and its continuation together.
            Defaults to the model's maximum length, at most 2,048.

    Returns:
        A dict: `file_bytes`; `memory_bytes`, the peak of all processes together; `model_bytes`,
        the part of it that the Keras model holds before the export begins; `seconds`, on two
        cores; `available_bytes` of this machine; and `fits`, whether the available memory is
        enough for the export in addition to the model.

    Raises:
        InputError: if an argument is invalid.
    """
    if target not in TARGETS:
        raise InputError(f"plan_export: `target` must be one of {TARGETS}, got {target!r}.")
    if target == "saved_model" and quantization is not None:
        raise InputError(
            "plan_export: `quantization` is only supported with the targets litert and litert_lm."
        )
    rules = rules_of(quantization)
    model = getattr(model, "model", model)  # a task has a model
    if isinstance(model, TransformerConfig):
        config = model
        variables = shapes_only(lambda: _variables(models.build(config)))
        model_bytes = 2 * sum(math.prod(shape) for _, shape in variables)
    elif isinstance(model, keras.Model) and hasattr(model, "config"):
        config, variables = model.config, _variables(model)
        model_bytes = sum(math.prod(v.shape) * _itemsize(v.dtype) for v in model.variables)
    else:
        raise InputError(
            f"plan_export: `model` must be a config, a model or a task, got {model!r}."
        )
    weights = sum(math.prod(shape) for _, shape in variables)
    if target == "saved_model":
        file_bytes = model_bytes
    else:
        file_bytes = sum(_bytes(name, shape, quantization, rules) for name, shape in variables)
    length = min(config.max_length, 2048) if max_length is None else max_length
    if not isinstance(length, int) or length < 2:
        raise InputError(f"plan_export: `max_length` must be an int > 1, got {max_length!r}.")
    largest = max(math.prod(shape) for _, shape in variables)
    if isinstance(config, models.ComposedConfig):
        is_decoder = isinstance(model, (models.ComposedLM, models.ComposedSeq2Seq))
        cache = decoder_of(model).cache_bytes(length, "float32") if is_decoder else 0
        blocks = max(1, len(variables) // 8)
    else:
        cache = _cache_bytes(config, length)
        blocks = config.num_layers + getattr(config, "num_decoder_layers", 0)
    before = _PARENT + model_bytes
    parent = before + _WORK + _WORK_PER_BLOCK * blocks
    if target != "saved_model" and quantization is None and model_bytes < 4 * weights:
        parent += 4 * weights  # a float32 copy of the model as the reference
    if target == "saved_model":
        phases = [parent + _SERVING + _SERVING_PER_BYTE * file_bytes + 2 * cache]
    else:
        phases = [
            parent + _LOWERING,
            parent + 8 * largest,
            parent + _RUNNING + _RUNNING_PER_BYTE * file_bytes + cache,
        ]
        if any(rule.bits == 4 for rule in rules):
            phases.append(parent + _MOMENTS)
    seconds = _PER_BLOCK * blocks + _PER_BILLION * weights / 1e9
    available = available_memory()
    needed = max(phases)
    return {
        "file_bytes": int(file_bytes),
        "memory_bytes": int(needed),
        "model_bytes": int(model_bytes),
        "seconds": round(seconds),
        "available_bytes": available,
        "fits": needed - before <= available,
    }


def check_room(
    caller: str,
    task: "Task",
    target: str,
    quantization: str | Sequence[QuantizationRule] | None,
    max_length: int,
) -> None:
    """Raise ExportError if an export would run out of memory."""
    estimate = plan_export(task, target, quantization, max_length)
    if not estimate["fits"]:
        needed = (estimate["memory_bytes"] - estimate["model_bytes"]) / _GB
        smaller = "" if target == "saved_model" else "fewer bits or a shorter `cache_length`, or "
        raise ExportError(
            f"{caller}: this export needs about {needed:.1f} GB in addition to the model, but only "
            f"{estimate['available_bytes'] / _GB:.1f} GB are available; use {smaller}more memory. "
            "Nothing was written."
        )


def available_memory() -> int:
    """Return the bytes of memory available on this machine, within the limit of its cgroup."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    (available,) = (int(n.split()[1]) * 1024 for n in lines if n.startswith("MemAvailable:"))
    limit, used = (pathlib.Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file():
        text = limit.read_text().strip()
        if text != "max":
            available = min(available, int(text) - int(used.read_text()))
    return available


def _variables(model):
    return [(v.path, tuple(v.shape)) for v in model.variables]


def _itemsize(dtype):
    return {"bfloat16": 2, "float16": 2, "int8": 1, "uint32": 4}.get(str(dtype), 4)


def _bytes(name, shape, quantization, rules):
    """Return the bytes of a weight in a TFLite file."""
    count = math.prod(shape)
    if quantization == "float16":
        return 2 * count
    if len(shape) != 2 or not rules:
        return 4 * count
    layer = name.rpartition("/")[0]
    is_table = layer.rpartition("/")[2].endswith("embedding")
    rule = rule_for(rules, "decode/embedding_0" if is_table else layer, shape[0])
    if rule is None:
        return 4 * count
    scales = 2 * count / rule.block if rule.block else 4 * max(shape)
    return count * rule.bits / 8 + scales


def _cache_bytes(config, length):
    heads = getattr(config, "num_key_value_heads", None) or config.num_heads
    layers = getattr(config, "num_layers", None) or config.num_decoder_layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_dim // config.num_heads
    return 2 * 4 * layers * heads * head_dim * length
