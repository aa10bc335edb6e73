"""Build the decoding loop and beam search of SavedModels, and check their settings."""

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_llm import generation, models, sampling_settings
from keras_llm.export.saved_model.signatures.base import FLOATS, INTS, check, text_checks, utf8
from keras_llm.sampling_settings import SETTINGS as TABLE
from keras_llm.tasks.settings import spare_bias
from keras_llm.types import Tensor

if TYPE_CHECKING:
    from keras_llm.tasks.generative import GenerativeTask

_SMALLEST = 16  # tokens; size of the smallest bucket of prompt lengths and budgets

# The setting inputs of signatures, each of length 1 or B: all sampling settings, those of
# `generate` and `translate`, and those of beam search.
ALL_SETTINGS = {
    "max_new_tokens": INTS,
    **{name: {"int32": INTS, "float32": FLOATS}[row.dtype] for name, row in TABLE.items()},
}
SETTINGS = {
    name: ALL_SETTINGS[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
}
BEAM_SETTINGS = {"max_new_tokens": INTS, "length_penalty": FLOATS}
# The values of inputs that a request omits, for servers that support defaults in signatures.
DEFAULTS = {
    "max_new_tokens": sampling_settings.MAX_NEW_TOKENS,
    "length_penalty": 1.0,
    **sampling_settings.DEFAULTS,
}


def checked(
    name: str, strings: Tensor, settings: dict[str, Tensor], vocabulary_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Check texts and settings.

    Args:
        name: str. Name of the input with the texts.
        strings: string (B,), any bytes.
        settings: dict of name to tensor, as in `ALL_SETTINGS`.
        vocabulary_size: int, of the model.

    Returns:
        Strings (B,) of UTF-8 and the settings, with control dependencies on the checks.
    """
    checks = text_checks(name, strings)
    for setting, value in settings.items():
        has_rows = (tf.size(value) == 1) | (tf.size(value) == tf.size(strings))
        checks.append(check(has_rows, f"{setting} must have length 1 or that of {name}"))
        holds, rule = _holds(setting, value)
        checks.append(check(tf.reduce_all(holds), f"{setting} must be {rule}"))
    if "top_k" in settings:
        fits = tf.reduce_all(settings["top_k"] <= vocabulary_size)
        checks.append(check(fits, f"top_k must be at most {vocabulary_size}, the vocabulary"))
    with tf.control_dependencies(checks):
        return utf8(strings), {n: tf.identity(value) for n, value in settings.items()}


def _holds(setting, value):
    """Return which values of a setting are allowed, and the rule for the error message."""
    if setting == "max_new_tokens":
        return value > 0, "an int > 0"
    finite = tf.math.is_finite(value) if value.dtype.is_floating else True
    if setting == "length_penalty":
        return finite, "a number"
    return finite & TABLE[setting].in_range(value), TABLE[setting].rule


def as_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Broadcast a setting of length 1 or B to (B,)."""
    return tf.broadcast_to(values, tf.reshape(rows, (1,)))


def generate(
    task: "GenerativeTask",
    token_ids: Tensor,
    lengths: Tensor,
    settings: dict[str, Tensor],
    encoder_token_ids: Tensor | None = None,
    xla: bool = False,
) -> dict[str, Tensor]:
    """Generate continuations for a batch of prompts.

    Args:
        task: a `TextGeneration` or a `Translation`.
        token_ids: int32 (B, T), padded on the right.
        lengths: int32 (B,).
        settings: dict of tensors (1,) or (B,), as in `ALL_SETTINGS`.
        encoder_token_ids: int32 (B, S), for an encoder-decoder.
        xla: bool. Whether to compile the loop with XLA. The number of rows, prompt lengths and
            budgets are then padded to powers of two, each of which is compiled on first use.

    Returns:
        A dict of `text` string (B,), `num_tokens` int32 (B,), `log_probability` float32 (B,),
        `finish_reason` string (B,), `token_ids` int32 (B, N) and `token_log_probabilities`
        float32 (B, N).
    """
    arguments = [token_ids, lengths, settings]
    if encoder_token_ids is not None:
        arguments.append(encoder_token_ids)
    run = _compiled if xla else _loop
    ids, counts, log_probabilities, stopped = run(task, *arguments)
    is_number = tf.reduce_all(tf.math.is_finite(log_probabilities))
    with tf.control_dependencies([check(is_number, "the model's logits are not numbers (NaN)")]):
        log_probability = tf.reduce_sum(log_probabilities, axis=1)
    new_ids = tf.RaggedTensor.from_tensor(ids, lengths=tf.cast(counts, tf.int64))
    return {
        "text": task.tokenizer.detokenize_continuation(new_ids, _last(token_ids, lengths)),
        "num_tokens": counts,
        "log_probability": log_probability,
        "finish_reason": tf.where(stopped, "stop", "length"),
        "token_ids": ids,
        "token_log_probabilities": log_probabilities,
    }


def search(
    task: "GenerativeTask",
    token_ids: Tensor,
    lengths: Tensor,
    max_new_tokens: Tensor,
    length_penalty: Tensor,
    width: int,
    encoder_token_ids: Tensor | None = None,
) -> dict[str, Tensor]:
    """Run beam search for a batch of prompts.

    Args:
        task: a `TextGeneration` or a `Translation`.
        token_ids, lengths, encoder_token_ids: as in `generate`.
        max_new_tokens: int32 (1,) or (B,).
        length_penalty: float32 (1,) or (B,), see `generation.beam_search`.
        width: int. Number of beams, all of which are returned.

    Returns:
        A dict of `text` string (B, W), best first, and `score` and `log_probability` float32
        (B, W).
    """
    model: Any = task.model  # from `models.seq2seq` if there are encoder tokens
    tokenizer = task.tokenizer
    pad_id, encoder_cache = tokenizer.pad_id, None
    if encoder_token_ids is not None:
        encoder_cache = models.encode_source(model, encoder_token_ids)
        pad_id = model.config.pad_id
    bias = spare_bias(tokenizer, model.config.vocabulary_size)
    sampling = generation.Sampling(logit_bias=bias)
    result = generation.beam_search(
        model,
        generation.make_request(model, token_ids, lengths, max_new_tokens, sampling),
        width,
        tf.constant(task.end_token_ids),
        pad_id,
        length_penalty=length_penalty,
        num_return_sequences=width,
        encoder_cache=encoder_cache,
    )
    exists = tf.reduce_all(tf.math.is_finite(result.score[:, 0]))
    with tf.control_dependencies([check(exists, "the model's logits are not numbers (NaN)")]):
        counts = tf.reshape(result.num_tokens, (-1,))
    ids = tf.reshape(result.token_ids, (tf.size(counts), -1))
    ids = tf.RaggedTensor.from_tensor(ids, lengths=tf.cast(counts, tf.int64))
    last = tf.repeat(_last(token_ids, lengths), width)
    texts = tokenizer.detokenize_continuation(ids, last)
    return {
        "text": tf.reshape(texts, tf.shape(result.score)),
        "score": result.score,
        "log_probability": result.log_probability,
    }


def _last(token_ids, lengths):
    """Return the last token of each prompt, int32 (B,)."""
    return tf.gather(token_ids, lengths - 1, batch_dims=1)


def _loop(task, token_ids, lengths, settings, encoder_token_ids=None, room=None):
    """Run the decoding loop of `generate`, without strings.

    Args:
        room: float32 (N,). Only its length is used: the maximum number of new tokens. None means
            the largest budget.

    Returns:
        New token ids int32 (B, N), their counts (B,), their log-probabilities (B, N), and whether
        the text ended with an end token (B,).
    """
    model, tokenizer = task.model, task.tokenizer
    settings = dict(settings)
    max_new_tokens = settings.pop("max_new_tokens")
    bias = spare_bias(tokenizer, model.config.vocabulary_size)
    sampling = generation.Sampling(**settings, logit_bias=bias)
    request = generation.make_request(model, token_ids, lengths, max_new_tokens, sampling)
    capacity = tf.reduce_max(request.budget) if room is None else tf.shape(room)[0]
    ids = {"stop_id": task.end_token_ids, "pad_id": tokenizer.pad_id}
    encoder_cache = None
    if encoder_token_ids is not None:
        ids["pad_id"] = model.config.pad_id
        encoder_cache = models.encode_source(model, encoder_token_ids)
    state, request = generation.start(model, request, capacity, **ids, encoder_cache=encoder_cache)
    state = generation.advance_until(model, state, request, **ids)
    return state.token_ids, state.num_tokens, state.token_log_probabilities, state.stopped


def _compiled(task, token_ids, lengths, settings, *encoder_token_ids):
    """Run `_loop` compiled with XLA, with sizes padded to buckets."""
    max_length = task.model.config.max_length
    rows = tf.shape(token_ids)[0]
    size = _bucket(rows, 1)
    settings = {name: _filled(as_rows(v, rows), size, v[0]) for name, v in settings.items()}
    budget = tf.minimum(settings["max_new_tokens"], max_length - _filled(lengths, size, 1))
    room = tf.zeros((_bucket(tf.reduce_max(budget), _SMALLEST),))
    width = tf.shape(token_ids)[1]
    width = tf.where(width == 1, 1, _bucket(width, _SMALLEST))
    token_ids = _filled_matrix(token_ids, size, width, task.tokenizer.pad_id)
    sources = [
        _filled_matrix(ids, size, _bucket(tf.shape(ids)[1], _SMALLEST), task.model.config.pad_id)
        for ids in encoder_token_ids
    ]

    @tf.function(jit_compile=True, autograph=False)
    def run(token_ids, lengths, settings, room, *sources):
        return _loop(task, token_ids, lengths, settings, *sources, room=room)

    outputs = run(token_ids, _filled(lengths, size, 1), settings, room, *sources)
    return tuple(output[:rows] for output in outputs)


def _bucket(size, smallest):
    """Return the next power of two, at least `smallest`, an int32 scalar tensor."""
    powers = tf.constant([2**i for i in range(31)])
    at_least = tf.maximum(size, smallest)
    return tf.gather(powers, tf.searchsorted(powers, tf.reshape(at_least, (1,)))[0])


def _filled(values, rows, value):
    """Pad (B,) to (rows,) with a value."""
    padding = tf.fill(tf.reshape(rows - tf.shape(values)[0], (1,)), tf.cast(value, values.dtype))
    return tf.concat([values, padding], axis=0)


def _filled_matrix(values, rows, columns, value):
    """Pad (B, T) to (rows, columns) with a value."""
    padding = tf.stack([rows, columns]) - tf.shape(values)
    paddings = tf.stack([tf.zeros_like(padding), padding], axis=1)
    return tf.pad(values, paddings, constant_values=value)
