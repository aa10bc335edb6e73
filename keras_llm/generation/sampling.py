"""Choose the next token from logits, settings, seed, step and text."""

import functools
from typing import NamedTuple, Self

from keras import ops

from keras_llm.errors import InputError
from keras_llm.generation import logits_processors as processors
from keras_llm.generation.constraints import Constraint, allowed_tokens
from keras_llm.sampling_settings import DEFAULTS, SETTINGS, check
from keras_llm.types import Tensor


class Text(NamedTuple):
    """Prompt and new tokens, for the settings that depend on them.

    Attributes:
        token_ids: int32 tensor (B, H), prompt and new tokens, padded on the right.
        prompt_lengths: int32 tensor (B,).
        lengths: int32 tensor (B,), prompt and new tokens together.
    """

    token_ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor


class Sampling(NamedTuple):
    """Sampling settings. Fields are scalars, or arrays (1,) or (B,).

    They apply in this order: `logit_bias`, penalties, `forced_tokens`, `min_new_tokens`,
    `no_repeat_ngram_size`; then, unless the temperature is 0, temperature, `top_k`, `top_p`,
    `min_p`, `typical_p` and random sampling.

    Settings that remove tokens never remove all. If they contradict each other, `constraint` takes
    precedence over `forced_tokens`, then bans (`logit_bias`), `min_new_tokens` and
    `no_repeat_ngram_size`: a setting that would leave no token has no effect for that token.

    Attributes:
        temperature: float >= 0; 0 is greedy decoding.
        top_k: int >= 0; 0 is off.
        top_p: float in (0, 1]; 1 is off.
        seed: int32. A row's text depends only on its own prompt, settings and seed, not on the
            other rows of the batch.
        min_p: float in [0, 1]; 0 is off (see `keep_likely`).
        typical_p: float in (0, 1]; 1 is off (see `keep_typical`).
        repetition_penalty: float > 0; 1 is off (see `penalize`).
        presence_penalty, frequency_penalty: float; 0 is off.
        no_repeat_ngram_size: int >= 0; 0 is off.
        min_new_tokens: int >= 0. The text does not stop before this many new tokens.
        logit_bias: None, or float array (1, V) or (B, V); -1e30 bans a token.
        forced_tokens: None, or int array (1, F) or (B, F), the first new tokens; -1 does not
            force a token.
        constraint: None, or a `Constraint` of all rows; in compiled code a tuple, empty or with
            the constraint's key (see `allowed_tokens`).
    """

    temperature: float | Tensor = DEFAULTS["temperature"]
    top_k: int | Tensor = DEFAULTS["top_k"]
    top_p: float | Tensor = DEFAULTS["top_p"]
    seed: int | Tensor = DEFAULTS["seed"]
    min_p: float | Tensor = DEFAULTS["min_p"]
    typical_p: float | Tensor = DEFAULTS["typical_p"]
    repetition_penalty: float | Tensor = DEFAULTS["repetition_penalty"]
    presence_penalty: float | Tensor = DEFAULTS["presence_penalty"]
    frequency_penalty: float | Tensor = DEFAULTS["frequency_penalty"]
    no_repeat_ngram_size: int | Tensor = DEFAULTS["no_repeat_ngram_size"]
    min_new_tokens: int | Tensor = DEFAULTS["min_new_tokens"]
    logit_bias: Tensor | None = None
    forced_tokens: Tensor | None = None
    constraint: Constraint | tuple[()] | tuple[Tensor] | None = None

    def validate(self) -> Self:
        """Raise InputError if a setting is out of range (Python numbers only)."""
        check({name: getattr(self, name) for name in SETTINGS})
        return self

    def tensors(self) -> "Sampling":
        """Return the settings as tensors of shape (1,) or (B,).

        Settings that are off stay Python numbers, so that they are not computed.
        """

        def tensor(name, value):
            if name == "constraint":
                return value
            if name not in ("temperature", "seed") and self.is_off(name):
                return value
            shape = (-1,) if name in SETTINGS else None
            value = ops.cast(ops.convert_to_tensor(value), dtype_of(name))
            return value if shape is None else ops.reshape(value, shape)

        return Sampling(*map(tensor, self._fields, self))

    def repeat(self, times: int) -> "Sampling":
        """Repeat the settings of each row; the copies of a row are adjacent."""

        def repeated(field):
            is_shared = not hasattr(field, "shape") or field.shape[0] == 1
            return field if is_shared else ops.repeat(field, times, axis=0)

        return Sampling._make(map(repeated, self))

    def ignores_text(self) -> bool:
        """Return whether no setting depends on the previous tokens."""
        return not self.constraint and all(map(self.is_off, _LOOKING_BACK))

    def is_off(self, name: str) -> bool:
        """Return whether a setting is a Python value equal to its default."""
        value = getattr(self, name)
        return value is None or (
            isinstance(value, (int, float)) and value == self._field_defaults[name]
        )


NOT_NUMBERS = (
    "the model's logits are not numbers (NaN) after this prompt; check the model's weights and "
    "compute dtype."
)


_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_LOOKING_BACK = (*_PENALTIES, "no_repeat_ngram_size")


def check_top_k(top_k: int, vocabulary_size: int) -> None:
    """Raise InputError if `top_k` is larger than the vocabulary."""
    if top_k > vocabulary_size:
        raise InputError(
            f"`top_k` must be at most the vocabulary size {vocabulary_size}, got {top_k}."
        )


def dtype_of(setting: str) -> str:
    """Return the dtype of a setting as a tensor."""
    if setting in SETTINGS:
        return SETTINGS[setting].dtype
    return "int32" if setting == "forced_tokens" else "float32"


def choose(
    logits: Tensor,
    sampling: Sampling,
    step: Tensor,
    text: Text | None = None,
    stop_id: int | Tensor | None = None,
    done: Tensor | None = None,
) -> Tensor:
    """Choose a token for each row.

    Sampling adds Gumbel noise to the processed logits and takes the largest, which samples from
    their softmax (Gumbel, 1954). The noise is a hash of (seed, step, token), so it is the same in
    eager mode, in compiled code, in an exported graph and on every backend.

    Args:
        logits: float32 tensor (B, V).
        sampling: `Sampling` of tensors (see `Sampling.tensors`).
        step: int32 tensor, scalar or (B,), 0 for a row's first new token.
        text: `Text`, required by penalties, `no_repeat_ngram_size` and `constraint`.
        stop_id: int or int32 tensor (S,), stop tokens, required by `min_new_tokens` and
            `constraint`.
        done: None, or bool tensor (B,), rows whose tokens are not used; `constraint` skips them.

    Returns:
        Int32 tensor (B,).
    """
    logits = process(logits, sampling, step, text, stop_id, done)

    is_sampled = sampling.temperature > 0

    def greedy():
        return _argmax(logits)

    def sampled():
        kept = _filtered(processors.scale_temperature(logits, sampling.temperature), sampling)
        noisy = kept + gumbel_noise(sampling.seed, step, logits.shape[-1])
        return _argmax(ops.where(ops.expand_dims(is_sampled, -1), noisy, logits))

    return ops.cond(ops.any(is_sampled), sampled, greedy)


def _argmax(x):
    """Return the index of the first largest value of each row, int32 (B,), for x (B, V).

    XLA vectorizes neither `ops.argmax` nor what it fuses into it, such as the logarithms of the
    noise, which takes ten times as long.
    """
    size = x.shape[-1]
    is_largest = x >= ops.max(x, axis=-1, keepdims=True)
    index = ops.min(ops.where(is_largest, ops.arange(size, dtype="int32"), size), axis=-1)
    return ops.minimum(index, size - 1)  # a row of NaN has no largest value


def process(
    logits: Tensor,
    sampling: Sampling,
    step: Tensor,
    text: Text | None = None,
    stop_id: int | Tensor | None = None,
    done: Tensor | None = None,
    is_search: bool = False,
) -> Tensor:
    """Apply the settings that affect both greedy decoding and sampling.

    Args:
        logits, sampling, step, text, stop_id, done: see `choose`.
        is_search: bool. Whether to remove all tokens of a row for which `constraint` allows none
            instead of raising an error.

    Returns:
        Float32 tensor (B, V).
    """
    size = logits.shape[-1]
    if text is not None:
        text = Text(*(ops.cast(field, "int32") for field in text))
    biased = logits if sampling.logit_bias is None else logits + sampling.logit_bias
    if sampling.constraint:
        allowed = allowed_tokens(sampling.constraint, text, stop_id, size, done, is_search)
        logits, biased = (ops.where(allowed, x, processors.REMOVED) for x in (logits, biased))
        biased = _unless_empty(biased, logits)
    rules = _rules(sampling, step, text, stop_id, size, logits)
    if not rules:
        return biased

    def apply_rules():
        processed = biased
        for _, rule in rules:
            processed = rule(processed)
        return processed

    # One condition for all rules, because each costs a copy of the logits.
    is_on = functools.reduce(ops.logical_or, [is_on for is_on, _ in rules])
    return ops.cond(is_on, apply_rules, lambda: biased)


def _rules(sampling, step, text, stop_id, size, allowed_logits):
    """Return the rules for the logits beyond bias and constraint, strongest first.

    A rule that would leave no token in a row has no effect in that row.

    Args:
        sampling, step, text, stop_id: see `process`.
        size: int. V.
        allowed_logits: float32 (B, V), logits that only the constraint has changed.

    Returns:
        A list of pairs: whether the rule is on in any row, a bool scalar; and a function of logits
        that returns logits.
    """
    rules = []
    if text is not None and not all(map(sampling.is_off, _PENALTIES)):
        values = [_row(getattr(sampling, name)) for name in _PENALTIES]
        are_on = [
            ops.any(value != DEFAULTS[n]) for n, value in zip(_PENALTIES, values, strict=True)
        ]
        has_penalties = functools.reduce(ops.logical_or, are_on)

        def penalize(logits):
            positions = ops.expand_dims(ops.arange(ops.shape(text.token_ids)[1]), 0)
            written = positions < ops.expand_dims(text.lengths, 1)
            new = written & (positions >= ops.expand_dims(text.prompt_lengths, 1))
            counts = [processors.occurrences(text.token_ids, c, size) for c in (written, new)]
            return processors.penalize(logits, *counts, *values)

        rules.append((has_penalties, lambda x: _if(has_penalties, penalize, x)))
    if sampling.forced_tokens is not None:
        here = ops.arange(ops.shape(sampling.forced_tokens)[1]) == ops.expand_dims(step, -1)
        token = ops.max(ops.where(here, sampling.forced_tokens, -1), axis=1, keepdims=True)
        is_forced = token >= 0  # (B or 1, 1)

        def force(logits):
            others = is_forced & (ops.expand_dims(ops.arange(size), 0) != token)
            forced = ops.where(is_forced, allowed_logits, logits)  # also a token that is banned
            return _unless_empty(ops.where(others, processors.REMOVED, forced), logits)

        rules.append((ops.any(is_forced), force))
    if stop_id is not None and not sampling.is_off("min_new_tokens"):
        early = ops.expand_dims(step < _row(sampling.min_new_tokens, "int32"), 1)

        def forbid_stops(logits):
            stops = ops.expand_dims(is_stop(ops.arange(size), stop_id), 0)
            return _unless_empty(ops.where(early & stops, processors.REMOVED, logits), logits)

        rules.append((ops.any(early), forbid_stops))
    if text is not None and not sampling.is_off("no_repeat_ngram_size"):
        ngram = _row(sampling.no_repeat_ngram_size, "int32")
        has_ngram = ops.any(ngram > 0)

        def forbid_ngrams(logits):
            rest = processors.forbid_repeated_ngrams(logits, text.token_ids, text.lengths, ngram)
            return _unless_empty(rest, logits)

        rules.append((has_ngram, lambda x: _if(has_ngram, forbid_ngrams, x)))
    return rules


def _unless_empty(remaining, logits):
    """Return the remaining logits, but `logits` in rows in which no token remains."""
    is_left = ops.any(remaining > processors.REMOVED / 2, axis=-1, keepdims=True)
    return ops.where(is_left, remaining, logits)


def is_stop(token: Tensor, stop_id: int | Tensor) -> Tensor:
    """Return which tokens are stop tokens.

    Args:
        token: int32 tensor of any shape.
        stop_id: int or int32 tensor (S,); -1 matches no token.

    Returns:
        Bool tensor like `token`.
    """
    stops = ops.reshape(ops.cast(stop_id, "int32"), (-1,))
    return ops.any(ops.expand_dims(token, -1) == stops, axis=-1)


def _filtered(scaled, sampling):
    """Apply top-k, top-p, min-p and typical-p; each is skipped if it is off in all rows."""
    if not (sampling.is_off("top_k") and sampling.is_off("top_p")):
        top_k, top_p = _row(sampling.top_k, "int32"), _row(sampling.top_p)
        scaled = _if(
            ops.any(top_k > 0) | ops.any(top_p < 1.0),
            lambda x: processors.keep_top(x, top_k, top_p),
            scaled,
        )
    if not sampling.is_off("min_p"):
        min_p = _row(sampling.min_p)
        scaled = _if(ops.any(min_p > 0), lambda x: processors.keep_likely(x, min_p), scaled)
    if not sampling.is_off("typical_p"):
        typical_p = _row(sampling.typical_p)
        scaled = _if(
            ops.any(typical_p < 1.0), lambda x: processors.keep_typical(x, typical_p), scaled
        )
    return scaled


def _if(condition, function, x):
    return ops.cond(condition, lambda: function(x), lambda: x)


def _row(value, dtype="float32"):
    return ops.reshape(ops.cast(ops.convert_to_tensor(value), dtype), (-1,))


def gumbel_noise(seed: Tensor, step: Tensor, size: int) -> Tensor:
    """Compute standard Gumbel noise with a counter-based hash.

    Args:
        seed: int32 tensor (B,) or (1,).
        step: int32 tensor, scalar or (B,).
        size: int. V.

    Returns:
        Float32 tensor (B, V) or (1, V).

    Reference:
        Jarzynski and Olano, 2020, "Hash Functions for GPU Rendering" (pcg3d).
    """
    x = ops.expand_dims(ops.cast(seed, "uint32"), -1)
    y = ops.expand_dims(ops.cast(step, "uint32"), -1)
    z = ops.expand_dims(ops.cast(ops.arange(size, dtype="int32"), "uint32"), 0)
    multiplier, increment = (ops.cast(c, "uint32") for c in (1664525, 1013904223))
    x, y, z = (v * multiplier + increment for v in (x, y, z))

    def mix(x, y, z):
        x = x + y * z
        y = y + z * x
        return x, y, z + x * y

    sixteen = ops.cast(16, "uint32")
    x, y, z = mix(x, y, z)
    x, y, z = (ops.bitwise_xor(v, ops.right_shift(v, sixteen)) for v in (x, y, z))
    x, _, _ = mix(x, y, z)
    # A float32 represents 24 bits exactly; adding 0.5 avoids log(0). The largest value would round
    # up to 1, whose noise is infinite and would select any token, even a banned one.
    bits = ops.cast(ops.cast(ops.right_shift(x, ops.cast(8, "uint32")), "int32"), "float32")
    uniform = ops.minimum((bits + 0.5) * 2.0**-24, 1 - 2.0**-24)
    return -ops.log(-ops.log(uniform))
