"""Measures of programs."""

import math

from keras_llm.errors import InputError


def pass_at_k(samples, passed, k):
    """The chance that one of `k` samples passes, of several problems.

    `1 - C(n - c, k) / C(n, k)` of `n` samples of which `c` passed, the mean over the problems: an
    unbiased estimate, other than `1 - (1 - c / n)^k`.

    Args:
        samples: ints, how many samples each problem had, n.
        passed: as many ints, how many of them passed, c.
        k: int > 0.

    Returns:
        Float in [0, 1].

    Raises:
        InputError: if there is no problem, `k` is not in 1..n, or c is not in 0..n.

    Example:
    >>> pass_at_k([4, 4], [4, 0], 2)
    0.5

    Reference:
        Chen et al., 2021, "Evaluating Large Language Models Trained on Code", eq. 1.
    """
    samples, passed = list(samples), list(passed)
    if not samples or len(samples) != len(passed):
        raise InputError(
            f"pass_at_k: {len(samples)} `samples` and {len(passed)} `passed`; there must be as "
            "many of both, at least one."
        )
    for n, c in zip(samples, passed, strict=True):
        if not 1 <= k <= n:
            raise InputError(f"`k` must be in 1 .. {n}, the samples of a problem, got {k}.")
        if not 0 <= c <= n:
            raise InputError(f"`passed` must be in 0 .. {n}, got {c}.")
    chances = [
        1 - math.comb(n - c, k) / math.comb(n, k) for n, c in zip(samples, passed, strict=True)
    ]
    return sum(chances) / len(chances)
