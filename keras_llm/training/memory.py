"""Predict the memory that training a model takes."""

import contextlib
import math

import keras
import numpy as np

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.layers.activations import get_activation, slope_of
from keras_llm.models.deferred import shapes_only
from keras_llm.training.losses.cross_entropy import CHUNK_ELEMENTS
from keras_llm.training.optimizers.quantized_moments import coded_bytes, is_coded

_CHUNKS = 5  # tensors of the size of a chunk of logits that are alive at the same time
_HEADS = 8  # copies and gradients of the output head's kernel, in addition to its weight
_NAMES = ("batch_size", "sequence_length")


def plan_memory(
    config: models.CausalLMConfig,
    batch_size: int,
    sequence_length: int,
    optimizer: str | keras.optimizers.Optimizer = "adamw",
    remat: bool = False,
    dtype: str | keras.DTypePolicy | None = None,
) -> dict[str, int]:
    """Predict the peak memory of training a causal language model with `LanguageModelTrainer`.

    Weights and optimizer state are exact, computed from the shapes of variables that are not
    allocated. Activations (the tensors that a block stores for the backward pass, by a formula),
    gradients and the chunks of the loss are estimates.

    Args:
        config: a `CausalLMConfig`.
        batch_size: int > 0, B.
        sequence_length: int > 0, T.
        optimizer: a Keras optimizer or its name.
        remat: bool, whether the blocks are rematerialized.
        dtype: Keras dtype policy. Defaults to the global policy.

    Returns:
        A dict of bytes: `weights`, `optimizer`, `gradients`, `activations`, `loss`, and their sum,
        `total`. The memory of the process itself, mainly TensorFlow's libraries, is not included.

    Raises:
        InputError: if an argument is invalid, naming it.

    Example:
    >>> from keras_llm import models
    >>> plan = plan_memory(models.preset("llama-tiny"), 8, 128)
    >>> plan["optimizer"] // plan["weights"]  # two moments per weight
    2
    """
    if not isinstance(config, models.CausalLMConfig):
        raise InputError(f"`config` must be a CausalLMConfig, got {type(config).__name__}.")
    for name, value in zip(_NAMES, (batch_size, sequence_length), strict=True):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"`{name}` must be a positive int, got {value!r}.")
    if sequence_length > config.max_length:
        raise InputError(
            f"`sequence_length` must be at most max_length={config.max_length}, got "
            f"{sequence_length}."
        )
    try:
        optimizer = keras.optimizers.get(optimizer)
    except ValueError as error:
        raise InputError(f"`optimizer`: {error}") from None

    def describe():
        model = models.build(config, dtype=dtype)
        rows = [(v.path, tuple(v.shape), _name(v.dtype)) for v in model.variables]
        return rows, model.get_layer("block_0").compute_dtype

    variables, compute = shapes_only(describe)
    trained = [row for row in variables if not row[0].endswith("seed_generator_state")]
    size = _itemsize(compute)
    tokens = batch_size * sequence_length
    block = tokens * _bytes_of_a_block(config, sequence_length, size)
    stream = tokens * size * config.hidden_dim
    layers = config.num_layers
    # With rematerialization: the input of every block, and all activations of the one that is
    # being recomputed.
    activations = layers * stream + block if remat else layers * block
    chunk = min(tokens * config.vocabulary_size, CHUNK_ELEMENTS)
    head = config.hidden_dim * config.vocabulary_size
    plan = {
        "weights": sum(math.prod(shape) * _itemsize(kind) for _, shape, kind in variables),
        "optimizer": _state_bytes(optimizer, trained),
        "gradients": sum(math.prod(shape) * _itemsize(kind) for _, shape, kind in trained),
        "activations": activations,
        "loss": 4 * (_CHUNKS * chunk + _HEADS * head) + 2 * stream,
    }
    return {**plan, "total": sum(plan.values())}


def _bytes_of_a_block(config, length, size):
    """Return the bytes per token that a block stores for the backward pass, `size` per element."""
    width, inner = config.hidden_dim, config.intermediate_dim
    heads, groups = config.num_heads * config.head_dim, 2 * config.num_key_value_heads
    norms = 4 * width  # the inputs and outputs of two norms
    attention = 3 * heads + 2 * groups * config.head_dim + width
    # The activation function's input, and its output unless the backward pass recomputes it.
    stored = 1 if slope_of(get_activation(config.activation)) and not config.num_experts else 2
    per_expert = stored * (2 if config.gated else 1) * inner
    experts = max(1, config.num_experts) + config.num_shared_experts
    dropout = 2 * width if config.dropout else 0
    # Scores and softmax are float32; the weights multiplied by the values have the compute dtype.
    scores = config.num_heads * length * (8 + size * (2 if config.dropout else 1))
    return size * (norms + attention + experts * per_expert + dropout) + scores


def _state_bytes(optimizer, variables):
    """Return the bytes of an optimizer's state for variables (path, shape, dtype).

    The optimizer is built on variables with a single element, and its state is scaled up.
    """
    total, config = 0, optimizer.get_config()
    for i, (path, shape, dtype) in enumerate(variables):
        *scopes, name = path.split("/")  # some optimizers depend on the path
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            small = keras.Variable(np.zeros([1] * len(shape)), dtype=dtype, name=name)
        copy = type(optimizer).from_config(config)
        copy.build([small])
        is_quantized = config.get("state_bits") == 8 and is_coded(shape)
        for state in copy.variables:
            if tuple(state.shape) not in ((), tuple(small.shape)):
                raise InputError(
                    f"`optimizer`: {type(optimizer).__name__} is not supported, because its state "
                    "does not have the shapes of the variables."
                )
            count = math.prod(shape) if len(state.shape) else int(i == 0)  # count scalars once
            if is_quantized and state.path.endswith(("_momentum", "_velocity")):
                total += coded_bytes(shape)
            else:
                total += count * _itemsize(_name(state.dtype))
    return total


def _name(dtype):
    return keras.backend.standardize_dtype(dtype)


def _itemsize(name: str) -> int:
    return 2 if name == "bfloat16" else np.dtype(name).itemsize
