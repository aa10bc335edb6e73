"""Convert KerasHub Llama and GPT-2 backbones, with their weights, to models and back."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_llm import models, tasks
from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.family import in_blocks
from keras_llm.checkpoints.hugging_face.model import computes_same
from keras_llm.checkpoints.hugging_face.tensors import Tensors
from keras_llm.checkpoints.weight_specs import parts
from keras_llm.errors import InputError, optional_packages
from keras_llm.layers import Llama3Scaling, Rotary
from keras_llm.models.deferred import shapes_only
from keras_llm.training.adapters.lora import has_adapters, merge_lora

_BLOCK = {
    "self_attention/query": "self_attention/query",
    "self_attention/key": "self_attention/key",
    "self_attention/value": "self_attention/value",
    "self_attention/output": "self_attention/attention_output",
    "feed_forward/up": "feedforward_intermediate_dense",
    "feed_forward/gate": "feedforward_gate_dense",
    "feed_forward/down": "feedforward_output_dense",
}
_NAMES = {
    "GPT2Backbone": {
        "token_embedding": "token_embedding",
        "position_embedding": "position_embedding",
        "final_norm": "layer_norm",
        **in_blocks(
            "transformer_layer_{i}/",
            {
                **_BLOCK,
                "self_attention_norm": "self_attention_layer_norm",
                "feed_forward_norm": "feedforward_layer_norm",
            },
        ),
    },
    "LlamaBackbone": {
        "token_embedding": "token_embedding",
        "head": "token_embedding",
        "final_norm": "sequence_output_layernorm",
        **in_blocks(
            "transformer_layer_{i}/",
            {
                **_BLOCK,
                "self_attention_norm": "self_attention_layernorm",
                "feed_forward_norm": "feedforward_layernorm",
            },
        ),
    },
}
_MAX_LENGTH = 4096  # default for a Llama, for which KerasHub stores no length


def from_keras_hub(
    model: keras.Model, max_length: int | None = None, dtype: str | None = None
) -> models.CausalLM:
    """Convert a KerasHub backbone to an equivalent model with the same weights.

    Args:
        model: a `keras_hub.models.LlamaBackbone` or `GPT2Backbone`, or a `LlamaCausalLM` or
            `GPT2CausalLM` with one.
        max_length: int. Maximum sequence length, which KerasHub does not store for a Llama.
            Defaults to 4096 for a Llama and to the stored length for a GPT-2.
        dtype: Keras dtype policy of the new model. Defaults to the global policy.

    Returns:
        A model from `models.causal_lm`.

    Raises:
        InputError: if the backbone is of another class, or `max_length` does not fit a GPT-2.
    """
    backbone = getattr(model, "backbone", model)
    kind = type(backbone).__name__
    if kind not in _NAMES:
        raise InputError(
            f"`model` must be a KerasHub model with a {' or a '.join(_NAMES)}, got {type(model)}."
        )
    if kind == "GPT2Backbone":
        if max_length not in (None, backbone.max_sequence_length):
            raise InputError(
                f"`max_length` must be {backbone.max_sequence_length} for this GPT2Backbone, got "
                f"{max_length}."
            )
        config = _gpt2_config(backbone)
    else:
        config = _llama_config(backbone, max_length or _MAX_LENGTH)
    variables = _variables(backbone)
    sources: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {
        path: (tuple(variable.shape), functools.partial(weight_mapping.to_numpy, variable))
        for path, variable in variables.items()
    }
    tensors = Tensors(sources, kind)
    new_model = shapes_only(lambda: models.causal_lm(config, dtype=dtype))
    links = _links(kind, new_model, variables)
    weight_mapping.check(links, tensors, what=kind)
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
    for kind, write, read in (
        ("GPT2Backbone", _gpt2_arguments, _gpt2_config),
        ("LlamaBackbone", _llama_arguments, lambda b: _llama_config(b, config.max_length)),
    ):
        arguments = write(config)
        if arguments is None:
            continue
        described = _Described(arguments)
        if not computes_same(config, read(described)):
            continue
        backbone = getattr(keras_hub.models, kind)(**arguments, dtype=dtype)
        variables = _variables(backbone)
        links = _links(kind, model, variables)
        for name, tensor in weight_mapping.collect(model, links).items():
            variables[name].assign(tensor)
        return backbone
    raise InputError(
        "no KerasHub backbone computes the same as this model; supported are "
        f"{' and '.join(_NAMES)}. The config of the model is {config.to_dict()}."
    )


class _Described:
    """The arguments of a backbone as attributes, like those of the backbone itself."""

    def __init__(self, arguments):
        vars(self).update(arguments)


def _gpt2_config(backbone):
    return models.CausalLMConfig(
        vocabulary_size=backbone.vocabulary_size,
        num_layers=backbone.num_layers,
        hidden_dim=backbone.hidden_dim,
        num_heads=backbone.num_heads,
        intermediate_dim=backbone.intermediate_dim,
        max_length=backbone.max_sequence_length,
        position="learned",
        norm="layer",
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        gated=False,
        use_bias=True,
        dropout=backbone.dropout,
    )


def _gpt2_arguments(config):
    return {
        "vocabulary_size": config.vocabulary_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "hidden_dim": config.hidden_dim,
        "intermediate_dim": config.intermediate_dim,
        "dropout": config.dropout,
        "max_sequence_length": config.max_length,
    }


def _llama_config(backbone, max_length):
    scaling = float(backbone.rope_position_scaling_factor)
    if scaling != 1:
        raise InputError(
            f"`rope_position_scaling_factor` is {scaling}; KerasHub 0.32 stores this number but "
            "computes as if it were 1, so only 1 is supported."
        )
    if backbone.rope_frequency_adjustment_factor is not None:
        scaling = Llama3Scaling(
            backbone.rope_frequency_adjustment_factor,
            backbone.rope_low_freq_factor,
            backbone.rope_high_freq_factor,
            backbone.rope_pretraining_sequence_length,
        )
    embedding = getattr(backbone, "token_embedding", None)
    tied = backbone.tie_word_embeddings if embedding is None else embedding.tie_weights
    return models.CausalLMConfig(
        vocabulary_size=backbone.vocabulary_size,
        num_layers=backbone.num_layers,
        hidden_dim=backbone.hidden_dim,
        num_heads=backbone.num_query_heads,
        num_key_value_heads=backbone.num_key_value_heads,
        intermediate_dim=backbone.intermediate_dim,
        max_length=max_length,
        position=Rotary(float(backbone.rope_max_wavelength), scaling),
        norm_epsilon=backbone.layer_norm_epsilon,
        tie_embeddings=tied,
        dropout=backbone.dropout,
    )


def _llama_arguments(config):
    scaling = getattr(config.position, "scaling", None)
    if scaling != 1 and not isinstance(scaling, Llama3Scaling):
        return None
    arguments = {
        "vocabulary_size": config.vocabulary_size,
        "num_layers": config.num_layers,
        "num_query_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_dim": config.hidden_dim,
        "intermediate_dim": config.intermediate_dim,
        "rope_max_wavelength": config.position.base,
        "rope_position_scaling_factor": 1.0,
        "rope_frequency_adjustment_factor": None,
        "layer_norm_epsilon": config.norm_epsilon,
        "dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if isinstance(scaling, Llama3Scaling):
        arguments |= {
            "rope_frequency_adjustment_factor": scaling.factor,
            "rope_low_freq_factor": scaling.low_frequency_factor,
            "rope_high_freq_factor": scaling.high_frequency_factor,
            "rope_pretraining_sequence_length": scaling.original_length,
        }
    return arguments


def _variables(backbone):
    return {v.path: v for v in backbone.variables if "seed_generator" not in v.path}


def _links(kind, model, variables):
    """Link the weights of a model to KerasHub variables, which have a separate axis for heads.

    Raises InputError for weights that KerasHub does not have, such as those of a quantized model.
    """
    links = []
    for part in parts(model):
        name = _NAMES[kind].get(part.key)
        if name is None:
            raise InputError(
                f"a {kind} has no weight for {part.path!r} of the model. A quantized model cannot "
                "be converted; convert it before quantization."
            )
        name = name.replace("{i}", str(part.block))
        for path, shape in part.weights.items():
            variable_name = f"{name}/{path.rpartition('/')[2]}"
            variable = variables.get(variable_name)
            variable_shape = shape if variable is None else tuple(variable.shape)
            links.append(weight_mapping.same(path, variable_name, shape, variable_shape))
    return links
