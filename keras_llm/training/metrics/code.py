"""Estimate pass@k of generated programs."""

import math
from collections.abc import Iterable

from keras_llm.errors import InputError


def pass_at_k(samples: Iterable[int], passed: Iterable[int], k: int) -> float:
    """Estimate pass@k: the probability that at least one of `k` samples passes.

    For a problem with `n` samples of which `c` passed: `1 - C(n - c, k) / C(n, k)`. The result is
    the mean over problems. The estimate is unbiased, unlike `1 - (1 - c / n)^k`.

    Args:
        samples: ints, the number of samples per problem, n.
        passed: ints, the number of samples per problem that passed, c.
        k: int > 0.

    Returns:
        Float in [0, 1].

    Raises:
        InputError: if there are no problems, the lengths differ, `k` is not in 1..n, or c is not
            in 0..n.

    Example:
    >>> pass_at_k([4, 4], [4, 0], 2)
    0.5

    Reference:
        Chen et al., 2021, "Evaluating Large Language Models Trained on Code", eq. 1.
    """
    samples, passed = list(samples), list(passed)
    if not samples or len(samples) != len(passed):
        raise InputError(
            "pass_at_k: `samples` and `passed` must have the same length, at least 1; got lengths "
            f"{len(samples)} and {len(passed)}."
        )
    for n, c in zip(samples, passed, strict=True):
        if not 1 <= k <= n:
            raise InputError(f"`k` must be in 1 .. {n}, the number of samples, got {k}.")
        if not 0 <= c <= n:
            raise InputError(f"`passed` must be in 0 .. {n}, got {c}.")
    chances = [
        1 - math.comb(n - c, k) / math.comb(n, k) for n, c in zip(samples, passed, strict=True)
    ]
    return sum(chances) / len(chances)
