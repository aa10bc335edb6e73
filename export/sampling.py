"""Sample tokens in NumPy, with the same results as `generation.choose`, without Keras."""

from typing import NamedTuple

import numpy as np

from keras_llm.sampling_settings import DEFAULTS, check

_REMOVED = np.float32(-1e30)


class Sampling(NamedTuple):
    """Sampling settings, with the same meaning as in `generation.Sampling`.

    Attributes:
        temperature: float >= 0; 0 is greedy decoding.
        top_k: int >= 0; 0 disables it.
        top_p: float in (0, 1]; 1 disables it.
        min_p: float in [0, 1]; 0 disables it.
        seed: int32.
    """

    temperature: float = DEFAULTS["temperature"]
    top_k: int = DEFAULTS["top_k"]
    top_p: float = DEFAULTS["top_p"]
    min_p: float = DEFAULTS["min_p"]
    seed: int = DEFAULTS["seed"]

    def validate(self) -> "Sampling":
        """Return self, or raise InputError for the first setting that is out of range."""
        check(self._asdict())
        return self


def choose(logits: np.ndarray, sampling: Sampling, step: int) -> int:
    """Choose the next token.

    Args:
        logits: float32 array (V,).
        sampling: `Sampling`.
        step: int, 0 for the first new token.

    Returns:
        int, the token id.
    """
    if sampling.temperature > 0:
        logits = logits.astype("float32") / np.maximum(np.float32(sampling.temperature), _COLDEST)
        if sampling.top_k > 0 or sampling.top_p < 1:
            logits = _keep_top(logits, sampling.top_k, np.float32(sampling.top_p))
        if sampling.min_p > 0:
            threshold = logits.max() + np.log(np.maximum(np.float32(sampling.min_p), _TINY))
            logits = np.where(logits >= threshold, logits, _REMOVED)
        logits = logits + gumbel_noise(sampling.seed, step, len(logits))
    return int(np.argmax(logits))


_TINY = np.float32(1e-30)
_COLDEST = np.float32(1e-6)  # as in `generation.scale_temperature`


def _keep_top(logits: np.ndarray, top_k: int, top_p: np.float32) -> np.ndarray:
    size = len(logits)
    ordered = np.sort(logits)[::-1]
    in_k = np.arange(size) < (top_k if top_k > 0 else size)
    ordered = np.where(in_k, ordered, _REMOVED)
    weights = np.exp(ordered - ordered[0])
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities) - probabilities
    smallest = ordered[in_k & (before < top_p)].min()
    return np.where(logits >= smallest, logits, _REMOVED)


def gumbel_noise(seed: int, step: int, size: int) -> np.ndarray:
    """Return the same noise as `generation.sampling.gumbel_noise`, float32 (V,).

    Args:
        seed, step: int.
        size: int. V.
    """
    x = np.array([seed % 2**32], "uint32")
    y = np.array([step], "uint32")
    z = np.arange(size, dtype="uint32")
    x, y, z = (v * np.uint32(1664525) + np.uint32(1013904223) for v in (x, y, z))

    def mix(x, y, z):
        x = x + y * z
        y = y + z * x
        return x, y, z + x * y

    x, y, z = (v ^ (v >> np.uint32(16)) for v in mix(x, y, z))
    x, _, _ = mix(x, y, z)
    uniform = ((x >> np.uint32(8)).astype("float32") + np.float32(0.5)) * np.float32(2**-24)
    return -np.log(-np.log(np.minimum(uniform, np.float32(1 - 2**-24))))
