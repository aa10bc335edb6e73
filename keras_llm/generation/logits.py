"""Logit processors: pure functions from logits (B, V) to logits (B, V), one setting a row."""

from keras import ops

_REMOVED = -1e30  # finite, so that sums and products of logits stay numbers


def scale_temperature(logits, temperature):
    """Divide each row by its temperature; rows with temperature 0 are left as they are.

    Args:
        logits: float32 tensor (B, V).
        temperature: float32 tensor (B,) or (1,), >= 0.

    Returns:
        Float32 tensor (B, V).
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

    Returns:
        Float32 tensor (B, V); what is removed is -1e30.
    """
    size = logits.shape[-1]
    top_k = ops.expand_dims(ops.where(top_k > 0, top_k, size), -1)
    ordered, _ = ops.top_k(logits, size)
    in_k = ops.arange(size) < top_k
    ordered = ops.where(in_k, ordered, _REMOVED)
    probabilities = ops.softmax(ordered, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    kept = ops.logical_and(in_k, before < ops.expand_dims(top_p, -1))
    # The most likely token always stays: `before` is 0 there and top_p is above 0.
    smallest = ops.min(ops.where(kept, ordered, -_REMOVED), axis=-1, keepdims=True)
    return ops.where(logits >= smallest, logits, _REMOVED)
