"""Check that a composed model computes the same with a cache as without."""

from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.layers import incremental
from keras_llm.layers._handler import is_cross
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.decoder import Decoder, decoder_of
from keras_llm.models.graph import Call, Value

_LONGEST_MASK = 1024
_MASKS = ("attention_mask", "decoder_attention_mask", "key_mask", "value_mask")
_ROWS = 2
_TEXTS = ((9, 4), (64, 60))  # tokens of a text and of its prompt
_TOLERANCES = {"bfloat16": 0.06, "float16": 0.01}
_DEFAULT_TOLERANCE = 1e-4
_PROTOCOL = (
    "Give its class `empty_cache(batch_size, length)` and the `call` arguments `cache`, "
    "`cache_update_index` and `positions`, or only `positions` if it does not mix positions; or "
    "pass `incremental=False`, which runs the whole text again for each token."
)


def check_composed(model: ConfiguredModel, pad_id: int | None = None) -> None:
    """Compare the outputs of all calls, whole and with a cache, on random tokens.

    Args:
        model: a `ComposedLM` or `ComposedSeq2Seq`.
        pad_id: int, the padding of token ids, or None if it is unknown.

    Raises:
        InputError: if outputs depend on later tokens, or (for an incremental model) those with a
            cache differ, naming the first layer.
    """
    decoder = decoder_of(model)
    with keras.StatelessScope(_without_constants(model)):
        for tokens, prompt in _TEXTS:
            if tokens <= model.config.max_length or tokens == _TEXTS[0][0]:
                count = min(tokens, model.config.max_length)
                _check(model, decoder, count, prompt, 0 if pad_id is None else pad_id)


def _without_constants(model):
    """Return other values for weights that are all equal, such as zeros, which hide differences."""
    generator, changed = np.random.default_rng(0), []
    for weight in model.trainable_weights:
        if not keras.backend.is_float_dtype(weight.dtype) or not _is_constant(weight):
            continue
        noise = 0.1 * generator.standard_normal(weight.shape)
        changed.append((weight, ops.cast(weight + ops.cast(noise, weight.dtype), weight.dtype)))
    return changed


def _is_constant(weight: keras.Variable) -> bool:
    """Return whether all elements of a weight are equal."""
    flat = ops.reshape(weight, (-1,))
    return all(bool(ops.all(part == flat[:1])) for part in (flat[:256], flat))


def _check(model, decoder, count, prompt, pad_id):
    """Compare the outputs for texts of `count` tokens with prompts of `prompt`."""
    config = model.config
    size = config.vocabulary_size
    layers = keras_internals.flatten_layers(model)
    low = int(any(getattr(layer, "mask_zero", False) for layer in layers))  # without masked tokens
    token_ids = np.random.default_rng(0).integers(low, size, (_ROWS, count)).astype("int32")
    sources = [_next(token_ids[:, :5], low, size)] * (len(decoder.graph.inputs) - 1)
    for source in sources:
        source[-1, -1] = config.pad_id
    other = token_ids.copy()
    other[:, count - 2 :] = _next(other[:, count - 2 :], low, size)
    try:
        expected = _whole(decoder, [*sources, token_ids])
        changed = _whole(decoder, [*sources, other])
        (logits,) = tree.flatten(model([*sources, token_ids] if sources else token_ids))
    except Exception as problem:  # layers raise anything for inputs they do not expect
        reason = (str(problem).strip() or repr(problem)).splitlines()[0]
        raise InputError(
            f"`model` cannot be run on token ids from {low} to {size - 1}, the number of its "
            f"logits: {reason}"
        ) from problem
    graph, output = decoder.graph, decoder.graph.outputs[0]
    require_logits(_array(logits))
    if _difference(graph, _array(logits), expected[output]):
        raise InputError(
            "the graph of `model` does not compute what `model` does, e.g. because a layer changes "
            "its weights or behaves differently in each call."
        )
    if _difference(graph, expected[output][:, : count - 2], changed[output][:, : count - 2]):
        _raise_not_causal(graph, expected, changed, count - 2)
    if config.incremental:
        if count <= _TEXTS[0][0]:
            _check_masks(decoder, config, pad_id)
        _check_steps(decoder, sources, token_ids, expected, prompt)


def require_logits(outputs: np.ndarray) -> None:
    """Raise InputError if outputs (..., C) are probabilities."""
    is_one = abs(outputs.sum(axis=-1) - 1) < 0.01
    if outputs.shape[-1] > 1 and is_one.all() and (outputs >= 0).all():
        raise InputError(
            "`model` returns probabilities; it must return logits: leave out the softmax at its "
            "end."
        )


def _check_masks(decoder, config, pad_id):
    """Raise InputError if attention has a mask that is narrower than the causal one, at any length.

    Steps with a cache use the causal mask.
    """
    graph, length = decoder.graph, min(config.max_length, _LONGEST_MASK)
    drawn = np.random.default_rng(0).integers(0, config.vocabulary_size - 1, (1, length))
    inputs = dict.fromkeys(
        graph.inputs, ops.convert_to_tensor((drawn + (drawn >= pad_id)), "int32")
    )
    is_past = np.tri(length, dtype=bool)
    for cached in decoder.calls:
        if isinstance(cached, Call) or cached.handler.group != "keys and values":
            continue
        bound = incremental.bound(cached.call.operation, cached.call.args, cached.call.kwargs)
        if is_cross(cached.symbolic):
            continue
        for name in _MASKS:
            mask = bound.get(name)
            if isinstance(mask, Value):
                values = graph.run(graph.leading_to(mask.index), dict(inputs))
                mask = values[mask.index]
            if mask is None:
                continue
            mask = np.asarray(ops.convert_to_numpy(ops.cast(mask, "bool")))
            if not np.all(mask | ~is_past if name.endswith("attention_mask") else mask):
                raise InputError(
                    f"{_described(cached.call)} is called with `{name}` that hides earlier "
                    "tokens, which is not known for new tokens alone: use a layer with a sliding "
                    "window, or pass `incremental=False`, which runs the whole text again for each "
                    "token."
                )


def _next(token_ids, low, size):
    """Return other token ids of low .. size - 1."""
    return low + (token_ids - low + 1) % (size - low)


def _whole(decoder: Decoder, inputs: list[np.ndarray]) -> dict[int, np.ndarray]:
    """Return the outputs (B, T, ...) of all calls on decoder tokens for whole texts, by index."""
    graph, length = decoder.graph, inputs[-1].shape[1]
    tensors = map(ops.convert_to_tensor, inputs)
    values = graph.run(graph.calls, dict(zip(graph.inputs, tensors, strict=True)))
    own = graph.depending_on(graph.inputs[-1:])
    return {
        index: _array(values[index])
        for call in graph.calls
        for index in own.intersection(call.outputs)
        if len(values[index].shape) == 3 and values[index].shape[1] == length
    }


def _raise_not_causal(graph, expected, changed, count):
    """Raise an error that names the first call whose outputs depend on later tokens."""
    for call in graph.calls:
        for index in expected.keys() & set(call.outputs):
            if _difference(graph, expected[index][:, :count], changed[index][:, :count]):
                raise InputError(
                    f"{_described(call)} depends on later tokens, so that text cannot be generated "
                    "token by token: use causal attention, e.g. `use_causal_mask=True`."
                )


def _check_steps(
    decoder: Decoder,
    sources: list[np.ndarray],
    token_ids: np.ndarray,
    expected: dict[int, np.ndarray],
    prompt: int,
) -> None:
    """Run prompts of different lengths, then tokens one by one, and compare all outputs."""
    cache = decoder.empty_cache(_ROWS, token_ids.shape[1])
    for source in sources:
        cache |= decoder.encode_source(ops.convert_to_tensor(source))
    begin = np.zeros(_ROWS, "int32")
    is_real = np.ones((_ROWS, min(prompt, token_ids.shape[1] - 1)), bool)
    is_real[-1, -1] = False  # the second prompt is one token shorter
    while (begin + is_real.shape[1]).max() <= token_ids.shape[1]:
        width = is_real.shape[1]
        positions = begin[:, None] + np.arange(width, dtype="int32")
        ids = np.take_along_axis(token_ids, positions, axis=1)
        values: dict[int, Any] = {decoder.graph.inputs[-1]: ops.convert_to_tensor(ids)}
        steps = decoder.run(
            values,
            ops.convert_to_tensor(positions),
            cache,
            ops.convert_to_tensor(begin),
            padding_mask=ops.convert_to_tensor(is_real) if width > 1 else None,
        )
        for call in [*decoder.calls, *decoder.head]:
            plain = call if isinstance(call, Call) else call.call
            try:
                if call in decoder.head:
                    plain.run(values)
                else:
                    _, cache = next(steps)
            except InputError:
                raise
            except Exception as problem:  # layers raise anything for inputs they do not expect
                reason = (str(problem).strip() or repr(problem)).splitlines()[0]
                raise InputError(
                    f"{_described(plain)} cannot run on new tokens alone: {reason} {_PROTOCOL}"
                ) from problem
            for index in expected.keys() & set(plain.outputs):
                whole, new = expected[index], _array(values[index])
                difference, rows = np.inf, np.take_along_axis(whole, positions[:, :, None], axis=1)
                if new.shape == rows.shape:
                    difference = _difference(decoder.graph, rows[is_real], new[is_real])
                if difference:
                    raise InputError(
                        f"{_described(plain)} gives other outputs for new tokens alone than for "
                        f"the whole text (a difference of {difference:.2g}). {_PROTOCOL}"
                    )
        begin = begin + is_real.sum(axis=1, dtype="int32")
        is_real = np.ones((_ROWS, 1), bool)


def _difference(graph, expected, actual):
    """Return the largest difference if it is more than rounding, else 0."""
    if not expected.size:
        return 0.0
    dtypes = {spec.dtype for spec in graph.specs.values()}
    tolerance = max(_TOLERANCES.get(dtype, _DEFAULT_TOLERANCE) for dtype in dtypes)
    error = float(np.abs(expected - actual).max())
    return 0.0 if error <= tolerance * max(1.0, float(np.abs(expected).max())) else error


def _array(x):
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))


def _described(call):
    kind = type(call.operation).__name__
    is_layer = isinstance(call.operation, keras.layers.Layer)
    return f"{'layer' if is_layer else 'operation'} {call.name!r} ({kind})"
