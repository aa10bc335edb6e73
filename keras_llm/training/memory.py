"""Predict the memory that training a model takes."""

import contextlib
import math

import keras
import numpy as np

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.layers import TransformerDecoder, TransformerEncoder
from keras_llm.layers.activations import get_activation, slope_of
from keras_llm.models.decoder import itemsize
from keras_llm.models.deferred import shapes_only
from keras_llm.models.graph import Graph, sized, split_head, traced
from keras_llm.training.losses.cross_entropy import CHUNK_ELEMENTS
from keras_llm.training.optimizers.quantized_moments import coded_bytes, is_coded

_CHUNKS = 5  # tensors of the size of a chunk of logits that are alive at the same time
_HEADS = 8  # copies and gradients of the output head's kernel, in addition to its weight
# Operations whose gradient needs no inputs, and those whose gradient needs their outputs.
_LINEAR = (
    *("Add", "Subtract", "Negative", "Concatenate", "Stack", "Split", "GetItem", "Pad", "Sum"),
    *("Reshape", "Transpose", "SwapAxes", "Swapaxes", "ExpandDims", "Squeeze", "BroadcastTo"),
    *("Cast", "Identity", "Mean", "Where", "Roll", "Flip", "Take", "Softmax", "Dropout"),
)
_KEPT = ("Softmax", "Tanh", "Sigmoid", "Exp", "Sqrt", "Rsqrt")
_NAMES = ("batch_size", "sequence_length")


def plan_memory(
    config: models.CausalLMConfig | models.ComposedLM | models.ComposedSeq2Seq,
    batch_size: int,
    sequence_length: int,
    optimizer: str | keras.optimizers.Optimizer = "adamw",
    remat: bool = False,
    dtype: str | keras.DTypePolicy | None = None,
) -> dict[str, int]:
    """Predict the peak memory of training a causal language model with `LanguageModelTrainer`.

    Weights and optimizer state are exact, computed from the shapes of variables that are not
    allocated. Activations (the tensors that a block stores for the backward pass, by a formula; of
    a composed model, the outputs of all layers and operations), gradients and the chunks of the
    loss are estimates.

    Args:
        config: a `CausalLMConfig`, or a composed model, see `models.as_causal_lm`.
        batch_size: int > 0, B.
        sequence_length: int > 0, T; of an encoder-decoder, on both sides.
        optimizer: a Keras optimizer or its name.
        remat: bool, whether the blocks are rematerialized.
        dtype: Keras dtype policy of the model of a config. Defaults to the global policy.

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
    composed = (models.ComposedLM, models.ComposedSeq2Seq)
    if not isinstance(config, (models.CausalLMConfig, *composed)):
        raise InputError(
            "`config` must be a CausalLMConfig or a model from models.as_causal_lm or as_seq2seq, "
            f"got {type(config).__name__}."
        )
    if isinstance(config, composed) and dtype is not None:
        raise InputError("`dtype` is only for a config; a composed model has its own.")
    for name, value in zip(_NAMES, (batch_size, sequence_length), strict=True):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"`{name}` must be a positive int, got {value!r}.")
    longest = config.config.max_length if isinstance(config, composed) else config.max_length
    if sequence_length > longest:
        raise InputError(
            f"`sequence_length` must be at most max_length={longest}, got {sequence_length}."
        )
    try:
        optimizer = keras.optimizers.get(optimizer)
    except ValueError as error:
        raise InputError(f"`optimizer`: {error}") from None

    if isinstance(config, composed):
        variables, trained = map(_described, (config.variables, config.trainable_variables))
        activations, loss = _composed_activations(config, batch_size, sequence_length, remat)
    else:
        variables, compute = shapes_only(lambda: _built(config, dtype))
        trained = [row for row in variables if not row[0].endswith("seed_generator_state")]
        activations, loss = _activations(config, batch_size, sequence_length, remat, compute)
    plan = {
        "weights": sum(math.prod(shape) * itemsize(kind) for _, shape, kind in variables),
        "optimizer": _state_bytes(optimizer, trained),
        "gradients": sum(math.prod(shape) * itemsize(kind) for _, shape, kind in trained),
        "activations": activations,
        "loss": loss,
    }
    return {**plan, "total": sum(plan.values())}


def _built(config, dtype):
    model = models.build(config, dtype=dtype)
    return _described(model.variables), model.get_layer("block_0").compute_dtype


def _described(variables):
    return [(v.path, tuple(v.shape), _name(v.dtype)) for v in variables]


def _activations(config, batch_size, sequence_length, remat, compute):
    """Return the bytes of activations and of the loss of a model from `causal_lm`."""
    size = itemsize(compute)
    tokens = batch_size * sequence_length
    block = tokens * _bytes_of_a_block(config, sequence_length, size)
    stream = tokens * size * config.hidden_dim
    layers = config.num_layers
    # With rematerialization: the input of every block, and all activations of the one that is
    # being recomputed.
    activations = layers * stream + block if remat else layers * block
    head = config.hidden_dim * config.vocabulary_size
    return activations, _loss_bytes(tokens * config.vocabulary_size, head, stream)


def _loss_bytes(logits, head, stream):
    """Return the bytes of a loss in chunks; `logits` and `head` are counts of elements."""
    return 4 * (_CHUNKS * min(logits, CHUNK_ELEMENTS) + _HEADS * head) + 2 * stream


def _composed_activations(model, batch_size, length, remat):
    """Return the bytes of activations and of the loss of a composed model."""
    blocks = (TransformerEncoder, TransformerDecoder)

    graph = Graph(sized(model, batch_size, length), whole=blocks if remat else ())
    projection = models.output_head(model)
    head = [] if projection.kernel is None else split_head(graph, graph.calls)[1]
    total, largest = _stored_bytes(graph, head), 0
    for call in graph.calls:
        if isinstance(call.operation, blocks):
            block = traced(call.operation, *call.filled(graph.specs))
            largest = max(largest, _stored_bytes(Graph(block, whole=())))
    logits = batch_size * length * model.config.vocabulary_size
    if projection.kernel is None:  # logits are not computed in chunks
        loss = 4 * 3 * logits
    else:
        width = projection.kernel.shape[0]
        states = 4 * batch_size * length * width
        loss = _loss_bytes(logits, math.prod(projection.kernel.shape), states)
    return total + (largest if remat else 0), loss


def _stored_bytes(graph, head=()):
    """Return the bytes that the calls but those of the head store for the backward pass."""
    length = graph.specs[graph.inputs[0]].shape[1]
    kept = {index for call in graph.calls if _keeps_inputs(call) for index in call.inputs}
    total = 0
    for call in graph.calls:
        if call in head:
            continue
        operation, outputs = call.operation, [graph.specs[index] for index in call.outputs]
        if isinstance(operation, keras.layers.RNN):
            # A loop keeps the results of all steps: about 5 for each column of the gates.
            *_, recurrent = (w.shape for w in operation.weights if w.name != "bias")
            per_unit = (5 * recurrent[-1] + 2 * recurrent[0]) / outputs[0].shape[-1]
            total += int(per_unit * _float_bytes(outputs[:1], length))
        else:
            stored = [graph.specs[index] for index in kept.intersection(call.outputs)]
            total += _float_bytes(stored if stored or not _keeps_outputs(call) else outputs, length)
        has_mask = isinstance(operation, keras.layers.Dropout) and operation.rate > 0
        if has_mask or _has_activation(operation):  # also of its input
            total += _float_bytes(outputs, length)
        if type(operation).__name__ == "DotProductAttention":  # also of scores and their softmax
            batch_size, _, num_heads, _ = outputs[0].shape
            total += 8 * batch_size * num_heads * length**2
    return total


def _keeps_inputs(call):
    kind = type(call.operation).__name__
    return kind not in _LINEAR and not (kind in ("Multiply", "Divide") and len(call.inputs) < 2)


def _keeps_outputs(call):
    return type(call.operation).__name__ in _KEPT


def _has_activation(layer):
    activation = getattr(layer, "activation", None)
    return callable(activation) and activation is not keras.activations.linear


def _float_bytes(tensors, length):
    """Return the bytes of symbolic tensors of floats; Keras forgets some lengths."""
    return sum(
        math.prod(size or length for size in x.shape) * itemsize(_name(x.dtype))
        for x in tensors
        if keras.backend.is_float_dtype(x.dtype)
    )


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
                total += count * itemsize(_name(state.dtype))
    return total


def _name(dtype):
    return keras.backend.standardize_dtype(dtype)
