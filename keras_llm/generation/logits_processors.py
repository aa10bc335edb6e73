"""Logit processors: pure functions from logits (B, V) to logits (B, V), one setting a row.

Each takes float32 logits (B, V) and settings (B,) or (1,), and returns float32 logits (B, V); what
is removed is -1e30.
"""

from keras import ops

REMOVED = -1e30  # finite, so that sums and products of logits stay numbers


def scale_temperature(logits, temperature):
    """Divide each row by its temperature; rows with temperature 0 are left as they are.

    Args:
        logits: float32 tensor (B, V).
        temperature: float32 tensor (B,) or (1,), >= 0.
    """
    divisor = ops.where(temperature > 0, temperature, ops.ones_like(temperature))
    return logits / ops.expand_dims(divisor, -1)


def keep_top(logits, top_k, top_p):
    """Keep the `top_k` largest logits, and of those the fewest that hold `top_p` probability.

    Tokens that tie with the smallest one kept are kept too.

    Args:
        logits: float32 tensor (B, V).
        top_k: int32 tensor (B,) or (1,); 0 keeps all.
        top_p: float32 tensor (B,) or (1,), in (0, 1]; 1 keeps all. The probabilities are
            those left after `top_k`, as in Holtzman et al., 2019, "The Curious Case of
            Neural Text Degeneration".
    """
    size = logits.shape[-1]
    top_k = ops.expand_dims(ops.where(top_k > 0, top_k, size), -1)
    ordered, _ = ops.top_k(logits, size)
    in_k = ops.arange(size) < top_k
    ordered = ops.where(in_k, ordered, REMOVED)
    probabilities = ops.softmax(ordered, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    kept = ops.logical_and(in_k, before < ops.expand_dims(top_p, -1))
    # The most likely token always stays: `before` is 0 there and top_p is above 0.
    smallest = ops.min(ops.where(kept, ordered, -REMOVED), axis=-1, keepdims=True)
    return ops.where(logits >= smallest, logits, REMOVED)


def keep_likely(logits, min_p):
    """Keep tokens that are at least `min_p` times as likely as the most likely one.

    Args:
        logits: float32 tensor (B, V).
        min_p: float32 tensor (B,) or (1,), in [0, 1]; 0 keeps all.

    Reference:
        Nguyen et al., 2024, "Turning Up the Heat: Min-p Sampling".
    """
    least = ops.log(ops.maximum(ops.expand_dims(min_p, -1), 1e-30))
    return ops.where(logits >= ops.max(logits, axis=-1, keepdims=True) + least, logits, REMOVED)


def keep_typical(logits, typical_p):
    """Keep the tokens whose information is nearest to the expected information, as few as hold
    `typical_p` probability.

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
    kept = ops.logical_or(before < typical_p, typical_p >= 1.0)
    farthest = ops.max(
        ops.where(kept, ops.take_along_axis(distance, order, axis=-1), -1.0),
        axis=-1,
        keepdims=True,
    )
    return ops.where(distance <= farthest, logits, REMOVED)


def penalize(logits, counts, new_counts, repetition, presence, frequency):
    """Make tokens that have occurred less likely.

    A token that has occurred in prompt or text has its logit divided by `repetition` if it is
    positive, else multiplied; and one that has occurred in the new text loses
    `presence + frequency * occurrences`.

    Args:
        logits: float32 tensor (B, V).
        counts, new_counts: float32 tensors (B, V), how often each token has occurred in all, and
            among the new tokens.
        repetition: float32 tensor (B,) or (1,), > 0; 1 is off.
        presence, frequency: float32 tensors (B,) or (1,); 0 is off.

    Reference:
        Keskar et al., 2019, "CTRL" (`repetition`).
    """
    repetition, presence, frequency = (
        ops.expand_dims(setting, -1) for setting in (repetition, presence, frequency)
    )
    repeated = ops.where(logits > 0, logits / repetition, logits * repetition)
    logits = ops.where(counts > 0, repeated, logits)
    return logits - presence * ops.cast(new_counts > 0, "float32") - frequency * new_counts


def occurrences(tokens, counted, size):
    """How often each token occurs.

    Args:
        tokens: int32 tensor (B, H).
        counted: bool tensor (B, H), which places count.
        size: int. V.

    Returns:
        Float32 tensor (B, V).
    """
    rows, length = ops.shape(tokens)[:2]
    place = ops.expand_dims(ops.arange(rows), 1) * size + tokens
    totals = ops.segment_sum(
        ops.reshape(ops.cast(counted, "float32"), (-1,)),
        ops.reshape(ops.clip(place, 0, rows * size - 1), (rows * length,)),
        num_segments=rows * size,
    )
    return ops.reshape(totals, (rows, size))


def forbid_repeated_ngrams(logits, tokens, lengths, size):
    """Remove the tokens that would complete an n-gram which has occurred already.

    Args:
        logits: float32 tensor (B, V).
        tokens: int32 tensor (B, H), the text so far, padded on the right.
        lengths: int32 tensor (B,), how many of them are text.
        size: int32 tensor (B,) or (1,), the n; 0 is off.

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
