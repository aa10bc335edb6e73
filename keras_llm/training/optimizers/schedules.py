"""Schedule the learning rate: linear warmup and a decay."""

import math

import keras
from keras import ops

from keras_llm.errors import InputError
from keras_llm.types import JSON, Tensor

_DECAYS = ("cosine", "linear", "inverse_sqrt", "wsd", "constant")


@keras.saving.register_keras_serializable("keras_llm")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warmup to a peak p, followed by a decay.

    With w = `warmup_steps`, n = `total_steps` and f = `final_share`, at step t >= w, with the decay
    progress `s = (t - w) / (n - w)`:

    - "cosine": `p (f + (1 - f) (1 + cos(pi s)) / 2)`
    - "linear": `p (1 - (1 - f) s)`
    - "inverse_sqrt": `p sqrt(w / t)`; requires a warmup and ignores f
    - "wsd" (warmup, stable, decay): p, then linear to `p f` over the last `decay_share` of n
    - "constant": p

    During warmup the rate is `p (t + 1) / (w + 1)`, so the first step is not 0. After n the rate is
    constant.

    Args:
        peak: float > 0.
        total_steps: int > 0, number of updates of the whole training.
        warmup_steps: int, in 0 .. total_steps - 1.
        decay: str, one of the above.
        final_share: float in [0, 1].
        decay_share: float in (0, 1], for "wsd".

    Raises:
        InputError: if an argument is invalid, naming it.

    References:
        Vaswani et al., 2017, "Attention Is All You Need", eq. 3 (inverse_sqrt).
        Hu et al., 2024, "MiniCPM", section 4 (wsd).

    Example:
    >>> schedule = WarmupDecay(1.0, total_steps=100, warmup_steps=9, decay="linear")
    >>> [round(float(schedule(step)), 2) for step in (0, 9, 100)]
    [0.1, 1.0, 0.1]
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        decay: str = "cosine",
        final_share: float = 0.1,
        decay_share: float = 0.2,
    ) -> None:
        for name, ok, rule in (
            ("peak", peak > 0, "> 0"),
            ("total_steps", total_steps > 0, "a positive int"),
            ("warmup_steps", 0 <= warmup_steps < total_steps, "in 0 .. total_steps - 1"),
            ("decay", decay in _DECAYS, f"one of {', '.join(_DECAYS)}"),
            ("final_share", 0 <= final_share <= 1, "in [0, 1]"),
            ("decay_share", 0 < decay_share <= 1, "in (0, 1]"),
        ):
            if not ok:
                raise InputError(f"`{name}` must be {rule}, got {locals()[name]!r}.")
        if decay == "inverse_sqrt" and not warmup_steps:
            raise InputError('`warmup_steps` must be positive for decay="inverse_sqrt".')
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.final_share = final_share
        self.decay_share = decay_share

    def __call__(self, step: Tensor) -> Tensor:
        """Return the learning rate of an update, counted from 0: a float tensor."""
        step = ops.minimum(ops.cast(step, "float32"), float(self.total_steps))
        warmup = (step + 1.0) / (self.warmup_steps + 1.0)
        share = ops.where(step < self.warmup_steps, warmup, self._decayed(step))
        return self.peak * share

    def _decayed(self, step: Tensor) -> Tensor:
        first, last = self.warmup_steps, self.total_steps
        drop = 1.0 - self.final_share
        if self.decay == "constant":
            return ops.ones_like(step)
        if self.decay == "inverse_sqrt":
            return ops.sqrt(first / ops.maximum(step, 1.0))
        if self.decay == "wsd":
            first = max(first, last - max(1, round(self.decay_share * last)))
        done = ops.clip((step - first) / (last - first), 0.0, 1.0)
        if self.decay == "cosine":
            return self.final_share + drop * 0.5 * (1.0 + ops.cos(math.pi * done))
        return 1.0 - drop * done

    def get_config(self) -> JSON:
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay": self.decay,
            "final_share": self.final_share,
            "decay_share": self.decay_share,
        }
