"""Add, save, load and merge low-rank adapters (LoRA) of models."""

import json
import pathlib
import re
import tempfile

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.files import atomic_file
from keras_llm.json_files import check_fields, parse_json
from keras_llm.keras_internals import flatten_layers
from keras_llm.layers.adapters import (
    DoraDense,
    adapter_part,
    add_magnitude,
    merging_adapters,
    separate_adapters,
)
from keras_llm.types import PathLike

ATTENTION = r"attention(_\d+)?/(query|key|value|(attention_)?output)$"
"""The attention projections, the layers that the LoRA paper adapts."""


def add_lora(
    model: keras.Model,
    layers: str = ATTENTION,
    rank: int = 8,
    alpha: float | None = None,
    quantization: str | None = None,
    dora: bool = False,
) -> list[str]:
    """Add adapters to layers of a model and freeze all other weights.

    A kernel W (I, O) becomes `W + (alpha / rank) A B`, A (I, rank) and B (rank, O). B is
    initialized to zeros, so the model's outputs do not change at first. Call `compile` afterwards.
    A saved model or trainer and `save_weights` contain kernels and adapters, which weights are
    trained, and, of a trainer, the state of the optimizer, so that training continues from them.
    Weights without adapters, see `merge_lora`, are loaded into a model without adapters. A saved
    task contains the merged kernels, or, where the kernel is quantized, kernel and adapters.

    Args:
        model: a model of this library. `Dense` and embedding layers can be adapted; the experts of
            a mixture of experts cannot, and stay frozen.
        layers: regular expression, searched for in the paths of layers, such as
            `block_0/self_attention/query`, `block_0/feed_forward/up` or `token_embedding`.
        rank: int > 0.
        alpha: float > 0. Defaults to `rank`.
        quantization: "int8" or "int4" to quantize the frozen kernels of adapted dense layers
            (QLoRA), or None. A quantized model cannot be merged; a saved task keeps its adapters.
            To merge them, save them with `save_lora` and load them onto a model that is not
            quantized.
        dora: bool. Whether to use DoRA, which learns the column norms m (O,) of the kernel:
            `m (W + (alpha / rank) A B) / |W + (alpha / rank) A B|`. For dense layers that are not
            quantized.

    Returns:
        The paths of the adapted layers, a list of str.

    Raises:
        InputError: if an argument is invalid, naming it; if no layer matches; or if a layer already
            has adapters.

    References:
        Hu et al., 2021, "LoRA"; Dettmers et al., 2023, "QLoRA"; Liu et al., 2024, "DoRA".

    Example:
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> len(add_lora(model, r"self_attention/(query|value)$", rank=4))
    4
    """
    if not isinstance(layers, str):
        raise InputError(f"`layers` must be a regular expression, got {layers!r}.")
    if not isinstance(rank, int) or rank < 1:
        raise InputError(f"`rank` must be a positive int, got {rank!r}.")
    if alpha is not None and not alpha > 0:
        raise InputError(f"`alpha` must be > 0, got {alpha!r}.")
    if quantization not in (None, "int8", "int4"):
        raise InputError(f'`quantization` must be "int8", "int4" or None, got {quantization!r}.')
    if dora and quantization is not None:
        raise InputError("`dora` is not supported with `quantization`.")
    candidates = _layers(model)
    try:
        matches = {path: layer for path, layer in candidates.items() if re.search(layers, path)}
    except re.error as error:
        raise InputError(f"`layers` is not a valid regular expression: {error}.") from None
    if not matches:
        raise InputError(f"`layers` {layers!r} matches none of {', '.join(candidates)}.")
    _refuse_adapted(matches)
    tables = [path for path, layer in matches.items() if not isinstance(layer, keras.layers.Dense)]
    if dora and tables:
        raise InputError(
            f"`dora` supports only dense layers, and `layers` also matches {tables[0]!r}."
        )
    for path, layer in matches.items():
        if dora and layer.quantization_mode is not None:
            raise InputError(f"`dora` supports only dense layers that are not quantized: {path!r}.")
    _freeze(model, matches.values())
    for layer in matches.values():
        if quantization is not None and isinstance(layer, keras.layers.Dense):
            layer.quantize(quantization)
        layer.enable_lora(rank, lora_alpha=alpha)
        if dora:
            add_magnitude(layer)
        separate_adapters(layer)
    return list(matches)


def save_lora(model: keras.Model, path: PathLike, overwrite: bool = False) -> None:
    """Save only the adapters, as safetensors.

    The tensors are `<layer path>.a`, `<layer path>.b` and, for DoRA, `<layer path>.magnitude`. The
    metadata has the paths of all layers that can be adapted, in their order.

    Args:
        model: a model with adapters.
        path: str or path of the file.
        overwrite: bool.

    Raises:
        InputError: if the model has no adapters, or `path` exists and `overwrite` is False.
    """
    adapted = _adapted(model)
    arrays, scales = {}, {}
    for name, layer in adapted.items():
        scales[name] = layer.lora_alpha / layer.lora_rank
        for part in "ab":
            arrays[f"{name}.{part}"] = keras.ops.convert_to_numpy(
                adapter_part(layer, f"lora_{part}")
            )
        if isinstance(layer, DoraDense):
            arrays[f"{name}.magnitude"] = keras.ops.convert_to_numpy(layer.magnitude)
    with atomic_file(path, overwrite) as partial:
        metadata = {"scales": json.dumps(scales), "layers": json.dumps(list(_layers(model)))}
        save_file(arrays, partial, metadata=metadata)


def load_lora(model: keras.Model, *paths: PathLike) -> list[str]:
    """Load saved adapters onto a model.

    Several adapters of one layer are added; DoRA adapters cannot be added. If the same model was
    built again, and its layers have other numbers in their paths, these are ignored.

    Args:
        model: a model of this library without adapters, with the layer shapes of the model that the
            adapters were trained on.
        *paths: str or path, files from `save_lora`.

    Returns:
        The paths of the adapted layers, a list of str.

    Raises:
        InputError: if a file cannot be read, a layer is missing or has another shape, or several
            files have adapters of one layer and one is a DoRA adapter, naming the file or layer; or
            if the model already has adapters.
    """
    stacked: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    magnitudes: dict[str, np.ndarray] = {}
    for path in paths:
        for name, (a, b, magnitude) in _read(path, list(_layers(model))).items():
            stacked.setdefault(name, []).append((a, b))
            if magnitude is not None:
                magnitudes[name] = magnitude
    candidates = _layers(model)
    for name, pairs in stacked.items():
        if name in magnitudes and len(pairs) > 1:
            raise InputError(
                f"{name!r} has DoRA adapters, which cannot be added: load one file, call "
                "merge_lora, then load the next."
            )
        if name not in candidates:
            raise InputError(f"the model has no layer {name!r} that can be adapted.")
        if name in magnitudes and candidates[name].quantization_mode is not None:
            raise InputError(f"{name!r} has DoRA adapters, and the model's layer is quantized.")
        expected = _shape(candidates[name])
        for a, b in pairs:
            if (a.shape[0], b.shape[1]) != expected:
                raise InputError(
                    f"the adapter of {name!r} has kernel shape {(a.shape[0], b.shape[1])}, the "
                    f"model's kernel has {expected}."
                )
    _refuse_adapted({name: candidates[name] for name in stacked})
    _freeze(model, [candidates[name] for name in stacked])
    for name, pairs in stacked.items():
        a = np.concatenate([a for a, _ in pairs], axis=1)
        b = np.concatenate([b for _, b in pairs], axis=0)
        candidates[name].enable_lora(a.shape[1])
        adapter_part(candidates[name], "lora_a").assign(a)
        adapter_part(candidates[name], "lora_b").assign(b)
        if name in magnitudes:
            add_magnitude(candidates[name], magnitudes[name])
        separate_adapters(candidates[name])
    return list(stacked)


def merge_lora(model: keras.Model) -> keras.Model:
    """Merge the adapters into the kernels and return a model without adapters.

    Each adapted kernel becomes `W + (alpha / rank) A B`, or the kernel of DoRA.

    Args:
        model: a model with adapters; it is not changed.

    Returns:
        A new model with the same config, fully trainable, that can be saved and exported.

    Raises:
        InputError: if the model has no adapters, or they are on quantized kernels.
    """
    for name, layer in _adapted(model).items():
        if layer.quantization_mode is not None:
            raise InputError(
                f"{name!r} is quantized and cannot be merged; use save_lora, then load_lora onto "
                "the model before quantization."
            )
    with merging_adapters(), tempfile.TemporaryDirectory() as folder:
        merged = models.restore(models.describe(model))
        path = pathlib.Path(folder) / "merged.weights.h5"
        model.save_weights(path)
        merged.load_weights(path)
    return merged


def _layers(model):
    """Return all layers that can be adapted, a dict by path."""
    leaves = flatten_layers(model)
    leaves = [layer for layer in leaves if hasattr(layer, "enable_lora") and layer.built]
    layers = {layer.path: layer for layer in leaves}
    for layer in leaves:
        if layers[layer.path] is not layer:
            raise InputError(
                f"`model` has two layers of the path {layer.path!r}: give them different names."
            )
    return layers


def has_adapters(model: keras.Model) -> bool:
    """Return whether a model has adapters."""
    return any(getattr(layer, "lora_enabled", False) for layer in flatten_layers(model))


def _adapted(model):
    adapted = {path: layer for path, layer in _layers(model).items() if layer.lora_enabled}
    if not adapted:
        raise InputError("`model` has no adapters; see add_lora.")
    return adapted


def _refuse_adapted(layers):
    for path, layer in layers.items():
        if layer.lora_enabled:
            raise InputError(f"{path!r} already has adapters; call merge_lora first.")


def _freeze(model, adapted):
    """Freeze all weights; layers without adapters as a whole, which Keras saves in their config."""
    adapted = {id(layer) for layer in adapted}
    for layer in flatten_layers(model):
        if adapted.isdisjoint(map(id, [layer, *flatten_layers(layer)])):
            layer.trainable = False
    for weight in model.weights:
        weight.trainable = False


def _shape(layer):
    if isinstance(layer, keras.layers.Embedding):
        return layer.input_dim, layer.output_dim
    return layer.kernel.shape


def _read(path, own):
    """Read a file from `save_lora`: layer path -> A, scale * B, and the DoRA magnitude or None.

    Args:
        path: str or path.
        own: list of the paths of the layers that can be adapted.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path} does not exist.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            scales = parse_json(metadata["scales"], path)
            check_fields({"scales": scales}, {"scales": dict[str, float]}, path)
            layers = parse_json(metadata.get("layers", "[]"), path)
            check_fields({"layers": layers}, {"layers": list[str]}, path)
            names = _renumbered(layers, own)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return {
                names.get(name, name): (
                    tensors[f"{name}.a"],
                    tensors[f"{name}.b"] * scale,
                    tensors.get(f"{name}.magnitude"),
                )
                for name, scale in scales.items()
            }
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a file from save_lora: {error}.") from None


def _renumbered(layers, own):
    """Return a dict from the paths of a saved model to those of one with other numbers in paths."""
    plain, own_plain = ([re.sub(r"_\d+", "", name) for name in names] for names in (layers, own))
    if set(layers) == set(own) or plain != own_plain:
        return {}
    return dict(zip(layers, own, strict=True))
