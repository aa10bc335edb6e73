"""The decode loop inside a graph for servers: its settings, their checks, and its speed."""

import tensorflow as tf

from keras_llm import generation, models, sampling_settings
from keras_llm.export.saved_model.signatures.base import FLOATS, INTS, check, text_checks, utf8
from keras_llm.sampling_settings import SETTINGS as TABLE
from keras_llm.tasks.settings import spare_bias

_SMALLEST = 16  # tokens; shorter prompts and budgets share this bucket

# The inputs of signatures, each of length 1 or B: those of one that generates, of one that takes
# every sampling setting, and of beam search.
ALL_SETTINGS = {
    "max_new_tokens": INTS,
    **{name: {"int32": INTS, "float32": FLOATS}[row.dtype] for name, row in TABLE.items()},
}
SETTINGS = {
    name: ALL_SETTINGS[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
}
BEAM_SETTINGS = {"max_new_tokens": INTS, "length_penalty": FLOATS}
# What a server that knows a signature's defaults takes where a request leaves an input out.
DEFAULTS = {
    "max_new_tokens": sampling_settings.MAX_NEW_TOKENS,
    "length_penalty": 1.0,
    **sampling_settings.DEFAULTS,
}


def checked(name, strings, settings, vocabulary_size):
    """Texts and settings that are fit to be used.

    Args:
        name: str, the input that the texts are.
        strings: string (B,), any bytes.
        settings: dict of name to tensor, as in `ALL_SETTINGS`.
        vocabulary_size: int, the model's.

    Returns:
        Strings (B,) of UTF-8 and settings, both of which come after the checks.
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
    """Which values of a setting are allowed, and the rule in words."""
    if setting == "max_new_tokens":
        return value > 0, "an int > 0"
    finite = tf.math.is_finite(value) if value.dtype.is_floating else True
    if setting == "length_penalty":
        return finite, "a number"
    return finite & TABLE[setting].in_range(value), TABLE[setting].rule


def as_rows(values, rows):
    """A setting of length 1 or B -> (B,)."""
    return tf.broadcast_to(values, tf.reshape(rows, (1,)))


def generate(task, token_ids, lengths, settings, encoder_token_ids=None, xla=False):
    """Continue a batch of prompts.

    Args:
        task: a `TextGeneration` or a `Translation`.
        token_ids: int32 (B, T), padded on the right.
        lengths: int32 (B,).
        settings: dict of tensors (1,) or (B,), as in `ALL_SETTINGS`.
        encoder_token_ids: int32 (B, S), of an encoder-decoder.
        xla: bool. Whether the loop is compiled by XLA. Rows, prompts and budgets are then filled
            up to powers of two: each such size is compiled once, when it first comes.

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
        "text": task.tokenizer.detokenize(new_ids),
        "num_tokens": counts,
        "log_probability": log_probability,
        "finish_reason": tf.where(stopped, "stop", "length"),
        "token_ids": ids,
        "token_log_probabilities": log_probabilities,
    }


def search(task, token_ids, lengths, max_new_tokens, length_penalty, width, encoder_token_ids=None):
    """Beam search for a batch of prompts.

    Args:
        task: a `TextGeneration` or a `Translation`.
        token_ids, lengths, encoder_token_ids: as of `generate`.
        max_new_tokens: int32 (1,) or (B,).
        length_penalty: float32 (1,) or (B,), see `generation.beam_search`.
        width: int, the beams, all of which come back.

    Returns:
        A dict of `text` string (B, W), the best first, and `score` and `log_probability` float32
        (B, W).
    """
    model, tokenizer = task.model, task.tokenizer
    pad_id, encoder_cache = tokenizer.pad_id, None
    if encoder_token_ids is not None:
        encoder_cache = models.encode_source(model, encoder_token_ids)
        pad_id = model.config.pad_id
    bias = spare_bias(tokenizer, model.config.vocabulary_size)
    found = generation.beam_search(
        model,
        token_ids,
        lengths,
        max_new_tokens,
        width,
        tf.constant(task.end_token_ids),
        pad_id,
        length_penalty=length_penalty,
        num_return_sequences=width,
        process=None if bias is None else lambda logits, step, texts: logits + bias,
        encoder_cache=encoder_cache,
    )
    exists = tf.reduce_all(tf.math.is_finite(found.score[:, 0]))
    with tf.control_dependencies([check(exists, "the model's logits are not numbers (NaN)")]):
        counts = tf.reshape(found.num_tokens, (-1,))
    ids = tf.reshape(found.token_ids, (tf.size(counts), -1))
    ids = tf.RaggedTensor.from_tensor(ids, lengths=tf.cast(counts, tf.int64))
    return {
        "text": tf.reshape(tokenizer.detokenize(ids), tf.shape(found.score)),
        "score": found.score,
        "log_probability": found.log_probability,
    }


def _loop(task, token_ids, lengths, settings, encoder_token_ids=None, room=None):
    """What `generate` does, without strings.

    Args:
        room: float32 (N,), whose length alone counts: the room for new tokens. None is the
            largest budget.

    Returns:
        New token ids int32 (B, N), how many they are (B,), their log-probabilities (B, N), and
        whether the text was ended (B,).
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
    """`_loop` in buckets, compiled."""
    max_length = task.model.config.max_length
    rows = tf.shape(token_ids)[0]
    many = _bucket(rows, 1)
    settings = {name: _filled(as_rows(v, rows), many, v[0]) for name, v in settings.items()}
    budget = tf.minimum(settings["max_new_tokens"], max_length - _filled(lengths, many, 1))
    room = tf.zeros((_bucket(tf.reduce_max(budget), _SMALLEST),))
    width = tf.shape(token_ids)[1]
    width = tf.where(width == 1, 1, _bucket(width, _SMALLEST))
    token_ids = _filled_matrix(token_ids, many, width, task.tokenizer.pad_id)
    sources = [
        _filled_matrix(ids, many, _bucket(tf.shape(ids)[1], _SMALLEST), task.model.config.pad_id)
        for ids in encoder_token_ids
    ]

    @tf.function(jit_compile=True, autograph=False)
    def run(token_ids, lengths, settings, room, *sources):
        return _loop(task, token_ids, lengths, settings, *sources, room=room)

    outputs = run(token_ids, _filled(lengths, many, 1), settings, room, *sources)
    return tuple(output[:rows] for output in outputs)


def _bucket(size, smallest):
    """The next power of two, at least `smallest`: int32 scalar tensors."""
    powers = tf.constant([2**i for i in range(31)])
    at_least = tf.maximum(size, smallest)
    return tf.gather(powers, tf.searchsorted(powers, tf.reshape(at_least, (1,)))[0])


def _filled(values, rows, value):
    """(B,) -> (rows,)."""
    more = tf.fill(tf.reshape(rows - tf.shape(values)[0], (1,)), tf.cast(value, values.dtype))
    return tf.concat([values, more], axis=0)


def _filled_matrix(values, rows, columns, value):
    """(B, T) -> (rows, columns)."""
    more = tf.stack([rows, columns]) - tf.shape(values)
    return tf.pad(values, tf.stack([tf.zeros_like(more), more], axis=1), constant_values=value)
