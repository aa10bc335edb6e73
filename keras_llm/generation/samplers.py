"""The choice of the next token: a pure function of logits, settings, seed and step."""

import dataclasses
import numbers

from keras import ops

from keras_llm.errors import InputError
from keras_llm.generation.logits import keep_top, scale_temperature


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How each row's next token is chosen. Fields are scalars, or arrays (1,) or (B,).

    Args:
        temperature: float >= 0; 0 takes the most likely token.
        top_k: int >= 0; 0 is off.
        top_p: float in (0, 1]; 1 is off.
        seed: int32. A row's text depends on its own prompt, settings and seed only, never
            on its neighbours in the batch.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def validate(self):
        """Raise InputError naming the first setting out of range (Python numbers only)."""
        for name, ok, rule in (
            ("temperature", 0 <= self.temperature < float("inf"), "a number >= 0"),
            ("top_k", isinstance(self.top_k, numbers.Integral) and self.top_k >= 0, "an int >= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            (
                "seed",
                isinstance(self.seed, numbers.Integral) and -(2**31) <= self.seed < 2**31,
                "an int of 32 bits",
            ),
        ):
            if not ok:
                raise InputError(f"`{name}` must be {rule}, got {getattr(self, name)!r}.")
        return self

    def tensors(self):
        """The same settings as tensors of shape (1,) or (B,)."""

        def tensor(value, dtype):
            return ops.reshape(ops.cast(ops.convert_to_tensor(value), dtype), (-1,))

        return Sampling(
            tensor(self.temperature, "float32"),
            tensor(self.top_k, "int32"),
            tensor(self.top_p, "float32"),
            tensor(self.seed, "int32"),
        )


def choose(logits, sampling, step):
    """Choose a token for each row.

    Sampling adds Gumbel noise to the processed logits and takes the largest, which draws from
    their softmax (Gumbel, 1954). The noise is a hash of (seed, step, token), so the same
    numbers come out in eager code, in compiled code, in an exported graph and on any backend.

    Args:
        logits: float32 tensor (B, V).
        sampling: `Sampling` of tensors (see `Sampling.tensors`).
        step: int32 scalar tensor, 0 for the first new token.

    Returns:
        Int32 tensor (B,).
    """

    def greedy():
        return ops.cast(ops.argmax(logits, axis=-1), "int32")

    def filtered():
        scaled = scale_temperature(logits, sampling.temperature)
        is_off = ops.logical_and(ops.all(sampling.top_k <= 0), ops.all(sampling.top_p >= 1.0))
        return ops.cond(
            is_off,
            lambda: scaled,
            lambda: keep_top(scaled, sampling.top_k, sampling.top_p),
        )

    def sampled():
        noisy = filtered() + gumbel_noise(sampling.seed, step, logits.shape[-1])
        token = ops.cast(ops.argmax(noisy, axis=-1), "int32")
        return ops.where(sampling.temperature > 0, token, greedy())

    return ops.cond(ops.any(sampling.temperature > 0), sampled, greedy)


def gumbel_noise(seed, step, size):
    """Standard Gumbel noise from a counter-based hash.

    Args:
        seed: int32 tensor (B,) or (1,).
        step: int32 scalar tensor.
        size: int. V.

    Returns:
        Float32 tensor (B, V) or (1, V).

    Reference:
        Jarzynski and Olano, 2020, "Hash Functions for GPU Rendering" (pcg3d).
    """
    x = ops.expand_dims(ops.cast(seed, "uint32"), -1)
    y = ops.cast(step, "uint32")
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
    # 24 bits fill a float32 exactly; the half step keeps both ends out of the logarithms.
    bits = ops.cast(ops.cast(ops.right_shift(x, ops.cast(8, "uint32")), "int32"), "float32")
    uniform = (bits + 0.5) * 2.0**-24
    return -ops.log(-ops.log(uniform))
