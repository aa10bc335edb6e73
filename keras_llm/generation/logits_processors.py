"""Process logits before sampling: temperature, top-k, top-p, min-p, typical-p and penalties.

Each function takes float32 logits (B, V) and settings (B,) or (1,) and returns float32 logits
(B, V). Removed tokens have a logit of -1e30.
"""

from keras import ops

from keras_llm.types import Tensor

REMOVED = -1e30  # finite, so that sums and products of logits are not NaN
_LOWEST = 0.4 * REMOVED  # of tokens that are not removed; logits up to REMOVED / 2 are


def scale_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide each row by its temperature. Rows with temperature 0 are unchanged.

    Temperatures below 1e-6 count as 1e-6, so that logits do not overflow to a tie.

    Args:
        logits: float32 tensor (B, V).
        temperature: float32 tensor (B,) or (1,), >= 0.
    """
    divisor = ops.where(temperature > 0, ops.maximum(temperature, 1e-6), 1.0)
    scaled = ops.maximum(logits / ops.expand_dims(divisor, -1), _LOWEST)
    return ops.where(logits <= REMOVED / 2, REMOVED, scaled)


def keep_top(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the `top_k` largest logits and of those the smallest set with probability `top_p`.

    Tokens that tie with the least likely kept token are also kept.

    Args:
        logits: float32 tensor (B, V).
        top_k: int32 tensor (B,) or (1,); 0 keeps all.
        top_p: float32 tensor (B,) or (1,), in (0, 1]; 1 keeps all. Probabilities are normalized
            after `top_k`.

    Reference:
        Holtzman et al., 2019, "The Curious Case of Neural Text Degeneration".
    """
    size = logits.shape[-1]
    top_k = ops.expand_dims(ops.where(top_k > 0, top_k, size), -1)
    ordered, _ = ops.top_k(logits, size)
    in_k = ops.arange(size) < top_k
    ordered = ops.where(in_k, ordered, REMOVED)
    probabilities = ops.softmax(ordered, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    is_first = ops.arange(size) == 0  # kept, even if a tiny `top_p` is flushed to 0
    kept = in_k & (is_first | (before < ops.expand_dims(top_p, -1)))
    smallest = ops.min(ops.where(kept, ordered, -REMOVED), axis=-1, keepdims=True)
    return ops.where(logits >= smallest, logits, REMOVED)


def keep_likely(logits: Tensor, min_p: Tensor) -> Tensor:
    """Keep tokens that are at least `min_p` times as likely as the most likely one.

    Args:
        logits: float32 tensor (B, V).
        min_p: float32 tensor (B,) or (1,), in [0, 1]; 0 keeps all.

    Reference:
        Nguyen et al., 2024, "Turning Up the Heat: Min-p Sampling".
    """
    least = ops.log(ops.maximum(ops.expand_dims(min_p, -1), 1e-30))
    return ops.where(logits >= ops.max(logits, axis=-1, keepdims=True) + least, logits, REMOVED)


def keep_typical(logits: Tensor, typical_p: Tensor) -> Tensor:
    """Keep the smallest set of most typical tokens with probability `typical_p`.

    The most typical tokens are those whose surprisal is closest to the entropy.

    Args:
        logits: float32 tensor (B, V).
        typical_p: float32 tensor (B,) or (1,), in (0, 1]; 1 keeps all.

    Reference:
        Meister et al., 2022, "Locally Typical Sampling".
    """
    log_p = ops.log_softmax(logits, axis=-1)
    p = ops.exp(log_p)
    entropy = -ops.sum(ops.where(p > 0, p * log_p, 0.0), axis=-1, keepdims=True)
    distance = ops.abs(-log_p - entropy)
    order = ops.argsort(distance, axis=-1)
    ordered = ops.take_along_axis(p, order, axis=-1)
    before = ops.cumsum(ordered, axis=-1) - ordered
    typical_p = ops.expand_dims(typical_p, -1)
    is_first = ops.arange(logits.shape[-1]) == 0
    kept = is_first | (before < typical_p) | (typical_p >= 1.0)
    farthest = ops.max(
        ops.where(kept, ops.take_along_axis(distance, order, axis=-1), -1.0),
        axis=-1,
        keepdims=True,
    )
    return ops.where(distance <= farthest, logits, REMOVED)


def penalize(
    logits: Tensor,
    counts: Tensor,
    new_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Make tokens that have occurred less likely.

    If a token occurs in the prompt or the new text, its logit is divided by `repetition` if
    positive and multiplied by it otherwise. If it occurs in the new text,
    `presence + frequency * occurrences` is subtracted. The result of a token that is not removed is
    limited to -4e29 .. 4e29, so that penalties alone remove no token.

    Args:
        logits: float32 tensor (B, V).
        counts, new_counts: float32 tensors (B, V), occurrences of each token in prompt and new
            text, and in the new text only.
        repetition: float32 tensor (B,) or (1,), > 0; 1 is off.
        presence, frequency: float32 tensors (B,) or (1,); 0 is off.

    Reference:
        Keskar et al., 2019, "CTRL" (`repetition`).
    """
    repetition, presence, frequency = (
        ops.expand_dims(setting, -1) for setting in (repetition, presence, frequency)
    )
    repeated = ops.where(logits > 0, logits / repetition, logits * repetition)
    penalized = ops.where(counts > 0, repeated, logits)
    penalized = penalized - presence * ops.cast(new_counts > 0, "float32") - frequency * new_counts
    penalized = ops.clip(penalized, _LOWEST, -_LOWEST)
    return ops.where(logits > REMOVED / 2, penalized, logits)


def occurrences(tokens: Tensor, counted: Tensor, size: int) -> Tensor:
    """Count the occurrences of each token.

    Args:
        tokens: int32 tensor (B, H).
        counted: bool tensor (B, H), the positions to count.
        size: int. V.

    Returns:
        Float32 tensor (B, V).
    """
    rows, length = ops.shape(tokens)[:2]
    index = ops.expand_dims(ops.arange(rows), 1) * size + tokens
    totals = ops.segment_sum(
        ops.reshape(ops.cast(counted, "float32"), (-1,)),
        ops.reshape(ops.clip(index, 0, rows * size - 1), (rows * length,)),
        num_segments=rows * size,
    )
    return ops.reshape(totals, (rows, size))


def forbid_repeated_ngrams(logits: Tensor, tokens: Tensor, lengths: Tensor, size: Tensor) -> Tensor:
    """Remove the tokens that would complete an n-gram that has already occurred.

    Args:
        logits: float32 tensor (B, V).
        tokens: int32 tensor (B, H), the text so far, padded on the right.
        lengths: int32 tensor (B,), the number of tokens without padding.
        size: int32 tensor (B,) or (1,), n; 0 is off.

    Reference:
        Paulus et al., 2017, "A Deep Reinforced Model for Abstractive Summarization".
    """
    places = ops.expand_dims(ops.arange(ops.shape(tokens)[1]), 0)
    lengths, size = ops.expand_dims(lengths, 1), ops.expand_dims(size, 1)
    completes = (places >= size - 1) & (places < lengths) & (size > 0) & (lengths >= size)

    def compare(back, completes):
        last = ops.take_along_axis(tokens, ops.maximum(lengths - back, 0), axis=1)
        same = ops.roll(tokens, back, axis=1) == last
        return back + 1, completes & (same | (back >= size))

    _, completes = ops.while_loop(
        lambda back, _: back < ops.max(size), compare, (ops.convert_to_tensor(1), completes)
    )
    return ops.where(occurrences(tokens, completes, logits.shape[-1]) > 0, REMOVED, logits)
