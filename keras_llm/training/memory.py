"""How much memory a training takes, told before it begins."""

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

_CHUNKS = 5  # tensors as large as a chunk of logits that are alive at once
_HEADS = 8  # copies and gradients of the output head's kernel, beside its weight
_NAMES = ("batch_size", "sequence_length")


def plan_memory(config, batch_size, sequence_length, optimizer="adamw", remat=False, dtype=None):
    """Predict the peak memory of training a causal language model with `LanguageModelTrainer`.

    Weights and the state of the optimizer are counted exactly, of variables that are described but
    not allocated. Activations are what the operations of a block hold for the backward pass, by
    a formula; they are an estimate, as are the gradients and the chunks of the loss.

    Args:
        config: a `CausalLMConfig`.
        batch_size: int > 0, B.
        sequence_length: int > 0, T.
        optimizer: a Keras optimizer, or the name of one.
        remat: bool, whether the blocks are rematerialised.
        dtype: Keras dtype policy. Defaults to the global one.

    Returns:
        A dict of bytes: `weights`, `optimizer`, `gradients`, `activations`, `loss`, and their sum,
        `total`. What the process itself takes, TensorFlow's libraries above all, is not in it.

    Raises:
        InputError: naming the argument that is wrong.

    Example:
    >>> from keras_llm import models
    >>> plan = plan_memory(models.preset("llama-tiny"), 8, 128)
    >>> plan["optimizer"] // plan["weights"]  # two moments for each weight
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
    # With rematerialisation the streams between the blocks, and the one that is computed again.
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
    """What a block holds for the backward pass, for each token; `size` bytes a number."""
    width, inner = config.hidden_dim, config.intermediate_dim
    heads, groups = config.num_heads * config.head_dim, 2 * config.num_key_value_heads
    norms = 4 * width  # two norms: what goes in, and the normalised
    attention = 3 * heads + 2 * groups * config.head_dim + width
    # What goes into the activation, and what comes out unless that is computed again.
    held = 1 if slope_of(get_activation(config.activation)) and not config.num_experts else 2
    a_product = held * (2 if config.gated else 1) * inner
    experts = max(1, config.num_experts) + config.num_shared_experts
    dropout = 2 * width if config.dropout else 0
    # Scores and their softmax are float32; what is multiplied by the values is not.
    scores = config.num_heads * length * (8 + size * (2 if config.dropout else 1))
    return size * (norms + attention + experts * a_product + dropout) + scores


def _state_bytes(optimizer, variables):
    """Of an optimizer for variables (path, shape, dtype), told from ones of a single number."""
    total, config = 0, optimizer.get_config()
    for i, (path, shape, dtype) in enumerate(variables):
        *scopes, name = path.split("/")  # some optimizers go by them
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            small = keras.Variable(np.zeros([1] * len(shape)), dtype=dtype, name=name)
        copy = type(optimizer).from_config(config)
        copy.build([small])
        in_codes = config.get("state_bits") == 8 and is_coded(shape)
        for state in copy.variables:
            if tuple(state.shape) not in ((), tuple(small.shape)):
                raise InputError(
                    f"`optimizer`: what {type(optimizer).__name__} keeps is not of its variables' "
                    "shapes; it cannot be planned."
                )
            count = math.prod(shape) if len(state.shape) else int(i == 0)  # its counters, once
            if in_codes and state.path.endswith(("_momentum", "_velocity")):
                total += coded_bytes(shape)
            else:
                total += count * _itemsize(_name(state.dtype))
    return total


def _name(dtype):
    return keras.backend.standardize_dtype(dtype)


def _itemsize(name):
    return 2 if name == "bfloat16" else np.dtype(name).itemsize
