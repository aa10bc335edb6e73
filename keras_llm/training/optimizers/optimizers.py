"""Keras's optimizers as language models use them: decay masks, gradient norms, skipped spikes."""

import contextlib

import keras
from keras import ops
from keras.src.optimizers.base_optimizer import BaseOptimizer

from keras_llm.errors import InputError
from keras_llm.training.distribution import replicas
from keras_llm.training.optimizers.quantized_moments import QuantizedMoment, is_coded

NO_DECAY = ("bias", "scale", "gamma", "beta", "magnitude")
_ROUNDED_TO_ONE = {"bfloat16": 2.0**-9, "float16": 2.0**-12}  # what is this near to 1 is 1
_SETTLING = 20  # updates before a norm can be told to be unusual


def check_precision(optimizer, variables):
    """Raise InputError if weights are so coarse that the optimizer would leave them as they are:
    `beta_2` = 0.999 is 1 in bfloat16, and Adam's steps, which `1 - beta_2^t` is in, are then 0."""
    beta = getattr(optimizer, "beta_2", None)
    for variable in variables:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if beta is not None and 1.0 - beta <= _ROUNDED_TO_ONE.get(dtype, 0.0):
            raise InputError(
                f"{type(optimizer).__name__} with beta_2={beta} does not change weights of "
                f"{dtype}: build the model with mixed_{dtype}, or use a smaller beta_2."
            )


class _Replicated:
    """What is added to an optimizer of Keras.

    Where several replicas share a batch, their gradients are summed first. Each then updates its
    own copy of the variables as one device would: the copies stay equal, and clipping,
    accumulation and averages are those of the whole batch. Keras's own code for TensorFlow clips
    and accumulates each replica's gradients before the sum; `BaseOptimizer` has the code without
    replicas, which every other backend runs.

    Attributes:
        gradient_norm: variable, the norm of the last batch's gradients, all together, before
            clipping.
        skipped: variable, how many updates were skipped.
    """

    def __init__(self, *args, no_decay=NO_DECAY, skip_factor=None, **kwargs):
        super().__init__(*args, **kwargs)
        if skip_factor is not None and not skip_factor > 1:
            raise InputError(f"`skip_factor` must be > 1 or None, got {skip_factor!r}.")
        if skip_factor is not None and self.gradient_accumulation_steps:
            raise InputError(
                "`skip_factor` cannot be given with `gradient_accumulation_steps`: a sum of "
                "gradients cannot leave one out any more."
            )
        if skip_factor is not None and keras.backend.backend() == "jax":
            raise InputError("`skip_factor` is not for Keras's JAX backend.")
        self.no_decay = tuple(no_decay)
        self.skip_factor = skip_factor
        if self.no_decay:
            self.exclude_from_weight_decay(var_names=list(self.no_decay))

    _backend_update_step = BaseOptimizer._backend_update_step
    _backend_increment_gradient_accumulators = (
        BaseOptimizer._backend_increment_gradient_accumulators
    )
    _overwrite_model_variables_with_average_value = (
        BaseOptimizer._overwrite_model_variables_with_average_value
    )

    def _get_current_learning_rate(self):
        """A schedule counts updates; Keras's own code counts batches where they are accumulated."""
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def build(self, variables):
        check_precision(self, variables)
        super().build(variables)
        for name in ("gradient_norm", "typical_norm", "skipped"):
            variable = self.add_variable((), initializer="zeros", dtype="float32", name=name)
            setattr(self, name, variable)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        # An embedding's gradient comes as rows, some of them more than once: their norm, which
        # Keras would clip by, is not that of the sum.
        grads = [None if g is None else _dense(g) for g in grads]
        grads = replicas.total(grads, type(self).__name__)
        squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in grads if g is not None]
        self.gradient_norm.assign(ops.sqrt(sum(squares)))
        super().apply(grads, trainable_variables)

    def _backend_apply_gradients(self, grads, trainable_variables):
        if self.skip_factor is None:
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        update = super()._backend_apply_gradients
        norm = ops.convert_to_tensor(self.gradient_norm)
        settling = self.iterations < _SETTLING
        usual = ops.isfinite(norm) & (settling | (norm <= self.skip_factor * self.typical_norm))

        def take():
            share = ops.where(self.iterations == 0, 1.0, 0.05)
            self.typical_norm.assign_add(share * (norm - self.typical_norm))
            update(grads, trainable_variables)

        def skip():
            # What is unusual again and again is usual after some: the mean grows towards it.
            grown = ops.minimum(norm, self.skip_factor * self.typical_norm) - self.typical_norm
            self.typical_norm.assign_add(ops.where(ops.isfinite(norm), 0.05 * grown, 0.0))
            self.skipped.assign_add(1.0)

        ops.cond(usual, take, skip)  # either way Keras counts the step: the schedule goes on

    def get_config(self):
        watched = {"no_decay": self.no_decay, "skip_factor": self.skip_factor}
        return {**super().get_config(), **watched}


def _dense(gradient):
    if keras.backend.backend() != "tensorflow":
        return gradient
    from keras_llm.training.tensorflow import dense

    return dense(gradient)


def _adam_in_one_pass(variable, averages, gradient, rate, iterations, betas, epsilon):
    """Adam's update as one operation, where TensorFlow has it; whether it was done. Keras's own
    code goes over all numbers ten times, unless XLA makes one pass of it."""
    if keras.backend.backend() != "tensorflow":
        return False
    from keras_llm.training.tensorflow import adam

    adam(variable, averages, gradient, rate, iterations, betas, epsilon)
    return True


def _when_there(gradient):
    """A graph of TensorFlow would read the averages of all variables when a step begins, and hold
    them until their gradients come."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    from keras_llm.training.tensorflow import waiting_for

    return waiting_for(gradient)


_ADDED = """

    Args:
        *args, **kwargs: as of `keras.optimizers.{name}`; among them `learning_rate`,
            `weight_decay`, `global_clipnorm`, `use_ema` with `ema_momentum`, and
            `gradient_accumulation_steps`.
        no_decay: regular expressions, searched for in the names of variables that weight decay
            leaves alone: biases and the gains of norms by default.
        skip_factor: float > 1 or None. An update whose gradients have a norm more than this many
            times the running mean, or not finite, is skipped. Not in the first 20 updates, and not
            on JAX.{more}

    Attributes:
        gradient_norm: variable, the norm of all gradients of the last batch, before clipping.
        skipped: variable, how many updates were skipped.

    Raises:
        InputError: naming the argument that is wrong; if the weights are too coarse for `beta_2`;
            or on several replicas with float16, whose loss scale Keras keeps for each by itself.
"""

_STATE_BITS = """
        state_bits: 32 or 8. In 8 bits the two averages of a matrix take about a quarter of their
            memory: codes with a scale for each row, as in Dettmers et al., 2021, "8-bit Optimizers
            via Block-wise Quantization", but powers of the codes in place of a table."""


@keras.saving.register_keras_serializable("keras_llm")
class AdamW(_Replicated, keras.optimizers.AdamW):
    __doc__ = "Adam with decoupled weight decay (Loshchilov and Hutter, 2017)." + _ADDED.format(
        name="AdamW", more=_STATE_BITS
    )
    _apply_weight_decay = BaseOptimizer._apply_weight_decay

    def __init__(self, *args, state_bits=32, **kwargs):
        super().__init__(*args, **kwargs)
        if state_bits not in (8, 32):
            raise InputError(f"`state_bits` must be 8 or 32, got {state_bits!r}.")
        if state_bits == 8 and self.amsgrad:
            raise InputError("`state_bits` must be 32 with `amsgrad`.")
        self.state_bits = state_bits

    def add_optimizer_variables(self, trainable_variables, name, initializer="zeros"):
        """As Keras's, but that the two averages of large matrices are codes where asked."""
        made = super().add_optimizer_variables
        if self.state_bits == 32 or name != ["momentum", "velocity"]:
            return made(trainable_variables, name, initializer)
        averages = [
            (
                QuantizedMoment(self, variable, "momentum", signed=True),
                QuantizedMoment(self, variable, "velocity", signed=False),
            )
            if is_coded(variable.shape)
            else [of for (of,) in made([variable], name)]
            for variable in trainable_variables
        ]
        return zip(*averages, strict=True)

    def update_step(self, gradient, variable, learning_rate):
        """As Keras's, on numbers that are decoded for it and encoded again where they are codes."""
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
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

    def get_config(self):
        return {**super().get_config(), "state_bits": self.state_bits}


@keras.saving.register_keras_serializable("keras_llm")
class Lion(_Replicated, keras.optimizers.Lion):
    __doc__ = "The sign of a momentum (Chen et al., 2023)." + _ADDED.format(name="Lion", more="")
    _apply_weight_decay = BaseOptimizer._apply_weight_decay


@keras.saving.register_keras_serializable("keras_llm")
class Muon(_Replicated, keras.optimizers.Muon):
    __doc__ = (
        "Orthogonalised momentum for matrices, Adam for the rest (Jordan et al., 2024)."
        + _ADDED.format(name="Muon", more="")
    )

    def _adamw_update_step(self, gradient, variable, learning_rate, m, v):
        betas = self.adam_beta_1, self.adam_beta_2
        if not _adam_in_one_pass(
            variable, (m, v), gradient, learning_rate, self.iterations, betas, self.epsilon
        ):
            super()._adamw_update_step(gradient, variable, learning_rate, m, v)

    def zeropower_via_newtonschulz5(self, x, steps):
        """The iteration of Keras, x <- (a + b x x^T + c (x x^T)^2) x; of a matrix (m, n) or (n, m)
        with n > 1.5 m on x x^T alone, for what x is multiplied by is a polynomial of that. A step
        is four products of m^3 then, instead of one and two of m^2 n. Small singular values do not
        bear being squared in 16 bits."""
        rows, columns = sorted(x.shape[-2:])
        coarse = keras.backend.standardize_dtype(x.dtype) in _ROUNDED_TO_ONE
        if not steps or columns <= 1.5 * rows or coarse:
            return super().zeropower_via_newtonschulz5(x, steps)
        tall = x.shape[-2] > x.shape[-1]
        x = self.transpose_last_axis(x) if tall else x
        x = x / (ops.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
        gram = x @ self.transpose_last_axis(x)
        same = ops.eye(rows, dtype=x.dtype)
        product = same
        for step in range(steps):
            factor = self.muon_a * same + self.muon_b * gram + self.muon_c * gram @ gram
            product = factor @ product if step else factor
            if step < steps - 1:
                gram = factor @ gram @ factor
        x = product @ x
        return self.transpose_last_axis(x) if tall else x
