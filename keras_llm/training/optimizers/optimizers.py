"""Extend Keras optimizers for language models: decay masks, gradient norms, spike skipping."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_llm.errors import InputError, require_list
from keras_llm.keras_internals import (
    BaseWeightDecay,
    MuonHooks,
    OptimizerHooks,
    adam_moments,
)
from keras_llm.training.distribution import replicas
from keras_llm.training.optimizers.quantized_moments import QuantizedMoment, is_coded
from keras_llm.types import JSON, Tensor

NO_DECAY = ("bias", "scale", "gamma", "beta", "magnitude")
_ROUNDED_TO_ONE = {"bfloat16": 2.0**-9, "float16": 2.0**-12}  # numbers this close to 1 round to 1
_SETTLING = 20  # updates before `skip_factor` applies


def check_precision(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]
) -> None:
    """Raise InputError if the weight dtype is too coarse for the optimizer's `beta_2`.

    In bfloat16, `beta_2` = 0.999 rounds to 1, so `1 - beta_2^t` and Adam's steps are 0.
    """
    beta = getattr(optimizer, "beta_2", None)
    for variable in variables:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if beta is not None and 1.0 - beta <= _ROUNDED_TO_ONE.get(dtype, 0.0):
            raise InputError(
                f"{type(optimizer).__name__} with beta_2={beta} cannot update {dtype} weights: "
                f"build the model with mixed_{dtype}, or use a smaller beta_2."
            )


class _Replicated(OptimizerHooks):
    """A mixin that adds replica support, gradient norms and skipped updates to Keras optimizers.

    If several replicas share a batch, their gradients are summed first. Each replica then updates
    its own copy of the variables as a single device would: the copies stay equal, and clipping,
    accumulation and moving averages are those of the global batch. Keras's TensorFlow code clips
    and accumulates each replica's gradients before the sum; `OptimizerHooks` replaces it.

    Attributes:
        gradient_norm: variable, the global norm of the last batch's gradients before clipping.
        skipped: variable, the number of skipped updates.
    """

    def __init__(
        self,
        *args: Any,
        no_decay: Iterable[str] = NO_DECAY,
        skip_factor: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if skip_factor is not None and not skip_factor > 1:
            raise InputError(f"`skip_factor` must be > 1 or None, got {skip_factor!r}.")
        if skip_factor is not None and self.gradient_accumulation_steps:
            raise InputError(
                "`skip_factor` is not supported with `gradient_accumulation_steps`: a single "
                "gradient cannot be removed from the accumulated sum."
            )
        if skip_factor is not None and keras.backend.backend() == "jax":
            raise InputError("`skip_factor` is not supported on Keras's JAX backend.")
        require_list("no_decay", no_decay)
        self.no_decay = tuple(no_decay)
        self.skip_factor = skip_factor
        if self.no_decay:
            self.exclude_from_weight_decay(var_names=list(self.no_decay))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        check_precision(self, variables)
        super().build(variables)
        for name in ("gradient_norm", "typical_norm", "skipped"):
            variable = self.add_variable((), initializer="zeros", dtype="float32", name=name)
            setattr(self, name, variable)

    def apply(
        self,
        grads: Sequence[Tensor | None],
        trainable_variables: Iterable[keras.Variable] | Any = None,
    ) -> None:
        if not self.built:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        # An embedding's gradient may list a row several times. Sum the duplicates first: Keras
        # would clip by the norm of the unsummed rows.
        grads = [None if g is None else _dense(g) for g in grads]
        grads = replicas.total(grads, type(self).__name__)
        squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in grads if g is not None]
        self.gradient_norm.assign(ops.sqrt(sum(squares)))
        super().apply(grads, trainable_variables)

    def apply_update(self, update: Callable[..., None], grads: Any, variables: Any) -> None:
        if self.skip_factor is None:
            update(grads, variables)
            return
        norm = ops.convert_to_tensor(self.gradient_norm)
        settling = self.iterations < _SETTLING
        is_normal = ops.isfinite(norm) & (settling | (norm <= self.skip_factor * self.typical_norm))

        def take():
            share = ops.where(self.iterations == 0, 1.0, 0.05)
            self.typical_norm.assign_add(share * (norm - self.typical_norm))
            update(grads, variables)

        def skip():
            # Let the running mean grow toward large norms, so that a lasting change is accepted.
            growth = ops.minimum(norm, self.skip_factor * self.typical_norm) - self.typical_norm
            self.typical_norm.assign_add(ops.where(ops.isfinite(norm), 0.05 * growth, 0.0))
            self.skipped.assign_add(1.0)

        ops.cond(is_normal, take, skip)  # Keras counts skipped steps too: the schedule advances

    def get_config(self) -> JSON:
        options = {"no_decay": self.no_decay, "skip_factor": self.skip_factor}
        return {**super().get_config(), **options}


def _dense(gradient):
    if keras.backend.backend() != "tensorflow":
        return gradient
    from keras_llm.training.tensorflow import dense

    return dense(gradient)


def _adam_in_one_pass(variable, averages, gradient, rate, iterations, betas, epsilon):
    """Run Adam's update as one fused operation on TensorFlow; return whether it ran.

    Keras's own code makes about ten passes over the elements, unless XLA fuses them.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    from keras_llm.training.tensorflow import adam

    adam(variable, averages, gradient, rate, iterations, betas, epsilon)
    return True


def _when_there(gradient):
    """Return a context whose operations wait for a gradient on TensorFlow.

    Otherwise a TensorFlow graph reads the moments of all variables at the start of a step and holds
    them in memory until their gradients are ready.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    from keras_llm.training.tensorflow import waiting_for

    return waiting_for(gradient)


_ADDED = """

    Args:
        *args, **kwargs: see `keras.optimizers.{name}`, e.g. `learning_rate`, `weight_decay`,
            `global_clipnorm`, `use_ema` with `ema_momentum`, and `gradient_accumulation_steps`.
        no_decay: regular expressions. Variables whose names match are excluded from weight decay;
            by default biases and norm scales.
        skip_factor: float > 1 or None. An update is skipped if the global norm of its gradients is
            more than this many times the running mean. Does not apply to the first 20 updates.
            Updates with a norm that is not finite are always skipped. Not supported on JAX.{more}

    Attributes:
        gradient_norm: variable, the global norm of the last batch's gradients before clipping.
        skipped: variable, the number of skipped updates.

    Raises:
        InputError: if an argument is invalid, naming it; if the weight dtype is too coarse for
            `beta_2`; or on several replicas with float16, where Keras would keep a separate loss
            scale for each replica.
"""

_STATE_BITS = """
        state_bits: 32 or 8. With 8, the two moments of a matrix take about a quarter of the memory:
            they are stored as 8-bit codes with a scale per row, as in Dettmers et al., 2021, "8-bit
            Optimizers via Block-wise Quantization", with powers of the codes instead of a table."""


@keras.saving.register_keras_serializable("keras_llm")
class AdamW(BaseWeightDecay, _Replicated, keras.optimizers.AdamW):
    __doc__ = "Adam with decoupled weight decay (Loshchilov and Hutter, 2017)." + _ADDED.format(
        name="AdamW", more=_STATE_BITS
    )

    def __init__(self, *args: Any, state_bits: int = 32, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if state_bits not in (8, 32):
            raise InputError(f"`state_bits` must be 8 or 32, got {state_bits!r}.")
        if state_bits == 8 and self.amsgrad:
            raise InputError("`state_bits` must be 32 with `amsgrad`.")
        self.state_bits = state_bits

    def add_optimizer_variables(
        self,
        trainable_variables: Iterable[keras.Variable],
        name: str | Sequence[str],
        initializer: Any = "zeros",
    ) -> Any:
        """Add variables as Keras does; with 8 state bits, quantize the moments of large matrices.

        See `QuantizedMoment`.
        """
        add_variables = super().add_optimizer_variables
        if self.state_bits == 32 or name != ["momentum", "velocity"]:
            return add_variables(trainable_variables, name, initializer)
        averages = [
            (
                QuantizedMoment(self, variable, "momentum", signed=True),
                QuantizedMoment(self, variable, "velocity", signed=False),
            )
            if is_coded(variable.shape)
            else [moment for (moment,) in add_variables([variable], name)]
            for variable in trainable_variables
        ]
        return zip(*averages, strict=True)

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        """Update as Keras does; dequantize and requantize moments if they are quantized."""
        first, second = adam_moments(self, variable)
        if not isinstance(first, QuantizedMoment):
            averages, betas = (first, second), (self.beta_1, self.beta_2)
            if self.amsgrad or not _adam_in_one_pass(
                variable, averages, gradient, learning_rate, self.iterations, betas, self.epsilon
            ):
                super().update_step(gradient, variable, learning_rate)
            return
        gradient, step = ops.cast(gradient, "float32"), ops.cast(self.iterations + 1, "float32")
        rate = ops.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        with _when_there(gradient):
            momentum, velocity = first.read(), second.read()
        momentum = momentum + (1 - self.beta_1) * (gradient - momentum)
        velocity = velocity + (1 - self.beta_2) * (ops.square(gradient) - velocity)
        update = rate * momentum / (ops.sqrt(velocity) + self.epsilon)
        self.assign_sub(variable, ops.cast(learning_rate * update, variable.dtype))
        first.write(momentum)
        second.write(velocity)

    def get_config(self) -> JSON:
        return {**super().get_config(), "state_bits": self.state_bits}


@keras.saving.register_keras_serializable("keras_llm")
class Lion(BaseWeightDecay, _Replicated, keras.optimizers.Lion):
    __doc__ = "Lion: updates by the sign of the momentum (Chen et al., 2023)." + _ADDED.format(
        name="Lion", more=""
    )


@keras.saving.register_keras_serializable("keras_llm")
class Muon(MuonHooks, _Replicated, keras.optimizers.Muon):
    __doc__ = (
        "Muon: orthogonalized momentum for matrices, Adam for the rest (Jordan et al., 2024)."
        + _ADDED.format(name="Muon", more="")
    )

    def update_with_adam(
        self, update: Callable[..., None], gradient: Tensor, variable: Any, *rest: Any
    ) -> None:
        rate, *averages = rest
        betas = self.adam_beta_1, self.adam_beta_2
        if not _adam_in_one_pass(
            variable, averages, gradient, rate, self.iterations, betas, self.epsilon
        ):
            update(gradient, variable, *rest)

    def zeropower_via_newtonschulz5(self, x: Tensor, steps: int) -> Tensor:
        """Orthogonalize a matrix with Keras's iteration, x <- (a + b x x^T + c (x x^T)^2) x.

        For a matrix (m, n) or (n, m) with n > 1.5 m, iterate on x x^T instead: the factor of x is a
        polynomial in x x^T. A step then takes four products of m^3 instead of one of m^3 and two of
        m^2 n. 16-bit dtypes use Keras's code, because squaring small singular values loses too much
        precision.
        """
        rows, columns = sorted(x.shape[-2:])
        is_16_bit = keras.backend.standardize_dtype(x.dtype) in _ROUNDED_TO_ONE
        if not steps or columns <= 1.5 * rows or is_16_bit:
            return super().zeropower_via_newtonschulz5(x, steps)
        tall = x.shape[-2] > x.shape[-1]
        x = self.transpose_last_axis(x) if tall else x
        x = x / (ops.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
        gram = x @ self.transpose_last_axis(x)
        identity = ops.eye(rows, dtype=x.dtype)
        product = identity
        for step in range(steps):
            factor = self.muon_a * identity + self.muon_b * gram + self.muon_c * gram @ gram
            product = factor @ product if step else factor
            if step < steps - 1:
                gram = factor @ gram @ factor
        x = product @ x
        return self.transpose_last_axis(x) if tall else x
