"""Convert KerasHub backbones, with their weights, to models and back."""

import functools
from typing import Any

import keras

from keras_llm import models, tasks
from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.model import computes_same
from keras_llm.checkpoints.hugging_face.tensors import Tensors
from keras_llm.checkpoints.keras_hub.families import FAMILIES
from keras_llm.checkpoints.keras_hub.family import variables_of
from keras_llm.errors import InputError, optional_packages
from keras_llm.models.deferred import shapes_only
from keras_llm.training.adapters.lora import has_adapters, merge_lora

_MAX_LENGTH = 4096  # default for backbones that store no length


def from_keras_hub(
    model: keras.Model, max_length: int | None = None, dtype: str | None = None
) -> models.CausalLM:
    """Convert a KerasHub backbone to an equivalent model with the same weights.

    Args:
        model: a `keras_hub.models.GPT2Backbone`, `LlamaBackbone`, `Llama3Backbone`,
            `MistralBackbone`, `MixtralBackbone`, `QwenBackbone`, `Qwen3Backbone`,
            `Qwen3MoeBackbone`, `GemmaBackbone` (Gemma 1 and 2), `Gemma3Backbone` (text only),
            `Phi3Backbone`, `SmolLM3Backbone`, `OPTBackbone`, `GPTNeoXBackbone` or `BloomBackbone`;
            or a task with one, such as a `LlamaCausalLM`.
        max_length: int. Maximum sequence length. Defaults to the stored length, or to 4096 if the
            backbone stores none. GPT-2 and OPT allow only the stored length.
        dtype: Keras dtype policy of the new model. Defaults to the global policy.

    Returns:
        A model from `models.causal_lm`.

    Raises:
        InputError: if the backbone is of another class or has an argument that is not supported,
            naming it; or if `max_length` does not fit a backbone with learned positions.
    """
    backbone: Any = getattr(model, "backbone", model)
    kind = type(backbone).__name__
    family = FAMILIES.get(kind)
    if family is None:
        raise InputError(
            f"`model` must be a KerasHub model with a backbone of one of the classes "
            f"{', '.join(FAMILIES)}, got {type(backbone)}."
        )
    stored = getattr(backbone, family.length) if family.length else _MAX_LENGTH
    if family.has_fixed_length and max_length not in (None, stored):
        raise InputError(f"`max_length` must be {stored} for this {kind}, got {max_length}.")
    try:
        config = family.read(backbone, stored if max_length is None else max_length)
    except ValueError as error:
        raise InputError(f"{kind}: {error}") from None
    variables = variables_of(backbone)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    tensors = Tensors(
        {
            name: (shapes[name], functools.partial(weight_mapping.to_numpy, variable))
            for name, variable in variables.items()
        },
        kind,
    )
    new_model = shapes_only(lambda: models.causal_lm(config, dtype=dtype))
    links = family.links(kind, new_model, shapes)
    weight_mapping.check(links, tensors, family.ignored, what=kind)
    weight_mapping.assign(new_model, links, tensors)
    return new_model


def to_keras_hub(model_or_task: models.CausalLM | tasks.Task) -> keras.Model:
    """Convert a model to an equivalent KerasHub backbone with the same weights.

    Args:
        model_or_task: a model from `models.causal_lm`, or a task with one. Adapters are merged.

    Returns:
        A `keras_hub.models.GPT2Backbone` or `LlamaBackbone`. The latter stores no maximum length.

    Raises:
        InputError: if no supported backbone computes the same function, or the model is quantized.
    """
    with optional_packages("to_keras_hub"):
        import keras_hub

    model: Any = model_or_task
    if not isinstance(model, keras.Model):
        model = getattr(model_or_task, "model", None)
    if not isinstance(model, models.CausalLM):
        raise InputError(
            f"`model_or_task` must have a model from models.causal_lm, got {type(model_or_task)}."
        )
    if has_adapters(model):
        model = merge_lora(model)
    config = model.config
    dtype = keras.dtype_policies.get(model.get_config()["dtype"] or keras.config.dtype_policy())
    for kind, family in FAMILIES.items():
        arguments = family.write(config) if family.write else None
        if arguments is None:
            continue
        described = _Described(arguments)
        if not computes_same(config, family.read(described, config.max_length)):
            continue
        backbone = getattr(keras_hub.models, kind)(**arguments, dtype=dtype)
        variables = variables_of(backbone)
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        links = family.links(kind, model, shapes)
        for name, tensor in weight_mapping.collect(model, links).items():
            variables[name].assign(tensor)
        return backbone
    writable = [kind for kind, family in FAMILIES.items() if family.write]
    raise InputError(
        "no KerasHub backbone computes the same as this model; supported are "
        f"{' and '.join(writable)}. The config of the model is {config.to_dict()}."
    )


class _Described:
    """The arguments of a backbone as attributes, like those of the backbone itself."""

    def __init__(self, arguments):
        vars(self).update(arguments)
