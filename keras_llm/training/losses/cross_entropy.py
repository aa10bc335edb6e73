"""Compute cross-entropy over the vocabulary in chunks, without the (B, T, V) tensor of logits."""

import dataclasses
from typing import TYPE_CHECKING

import keras
from keras import ops

from keras_llm.types import Tensor

if TYPE_CHECKING:
    from keras_llm.models import OutputHead

CHUNK_ELEMENTS = 2**22  # logits per chunk: 16 MiB in float32
_LARGEST = 64.0  # weight of a token in float16: small gradients do not underflow, sums fit


@dataclasses.dataclass(frozen=True)
class ChunkedCrossEntropy:
    """Cross-entropy of tokens, computed in chunks from the hidden states and the output kernel.

    With `l = softcap(states kernel + bias)`, `Z = log sum exp l` and e = `label_smoothing`:
    `loss = Z - (1 - e) l[target] - e mean(l) + z_loss Z^2`.

    A loop computes the logits of one chunk of tokens at a time. In training, the same pass computes
    the gradients, so no logit is computed twice. Memory holds one chunk of logits and the gradients
    of `states` and `kernel`. With float16 states, the gradients are computed for weights scaled to
    a fixed range and unscaled in float32, after a loss scale has multiplied them, so that they do
    not underflow.

    Args:
        label_smoothing: float in [0, 1). The e of the formula.
        z_loss: float >= 0.
        soft_cap: float or None. Logits become `soft_cap tanh(logits / soft_cap)`.
        chunk_size: int > 0, tokens per chunk; None for chunks of about 4 million logits.

    References:
        Szegedy et al., 2016, "Rethinking the Inception Architecture", section 7 (smoothing).
        Chowdhery et al., 2022, "PaLM", section 5 (z loss).
        Hsu et al., 2024, "Liger Kernel" (gradients in the forward pass).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None
    chunk_size: int | None = None

    def token_losses(
        self, states: Tensor, kernel: Tensor | None, targets: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses without gradients.

        Args:
            states: float tensor (N, D).
            kernel: float tensor (D, V); None if the states are the logits.
            targets: int tensor (N,), in 0 .. V - 1.
            bias: float tensor (V,) or None.

        Returns:
            Two float32 tensors (N,): the losses, and 1 where the target has the largest logit,
            else 0.
        """
        weights = ops.ones_like(targets, "float32")
        return self._run(states, kernel, bias, targets, weights)[:2]

    def weighted_sum(
        self,
        states: Tensor,
        kernel: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        bias: Tensor | None = None,
        frozen_kernel: bool = False,
        teacher: "tuple[Tensor, OutputHead] | None" = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the sum of `weights * losses`, with gradients for `states`, `kernel` and `bias`.

        Args:
            states, kernel, targets, bias: see `token_losses`.
            weights: float tensor (N,), of any sign, treated as constants.
            frozen_kernel: bool. Whether to skip the gradient of `kernel`.
            teacher: `(states, head)` of the teacher for subclasses that distill: float tensor
                (N, D') and `models.OutputHead`, treated as constants; or None.

        Returns:
            The float32 sum, and the two tensors of `token_losses`, which have no gradient.
        """

        weights = ops.cast(weights, "float32")
        frozen_kernel = frozen_kernel or kernel is None
        frozen = [kernel] if frozen_kernel else []
        trained = ([] if frozen_kernel else [kernel]) + ([] if bias is None else [bias])
        # Copy to tensors: in TensorFlow's eager mode, a custom gradient must return the gradients
        # of variables separately.
        trained = [ops.copy(weight) for weight in trained]
        scaled, scale = weights, 1.0
        if keras.backend.standardize_dtype(states.dtype) == "float16":
            scale = _LARGEST / ops.maximum(ops.max(ops.abs(weights), initial=0.0), 1e-30)
            scaled = weights * scale

        @ops.custom_gradient
        def run(states, *trained):
            kernel, *bias = frozen + list(trained)
            losses, right, *parts = self._run(
                states,
                kernel,
                bias[0] if bias else None,
                targets,
                scaled,
                True,
                frozen_kernel,
                teacher,
            )
            if frozen_kernel:
                del parts[1]

            def gradients(*args, upstream=None):
                upstream = (args if upstream is None else upstream)[0]
                if isinstance(upstream, tuple):  # JAX passes all cotangents as one tuple
                    upstream = upstream[0]
                return tuple(
                    ops.cast(upstream * (ops.cast(part, "float32") / scale), like.dtype)
                    for part, like in zip(parts, (states, *trained), strict=False)
                )

            return (ops.sum(losses * weights), losses, right), gradients

        total, losses, right = run(states, *trained)
        return total, ops.stop_gradient(losses), ops.stop_gradient(right)

    def _run(
        self,
        states,
        kernel,
        bias,
        targets,
        weights,
        gradients=False,
        frozen_kernel=False,
        teacher=None,
    ):
        """Return losses (N,), correct flags (N,), and the gradients of states, kernel and bias.

        The gradients are those of `sum(weights * losses)`.
        """
        count = ops.shape(states)[0]
        vocabulary = states.shape[1] if kernel is None else kernel.shape[1]
        size = self._size(count, vocabulary)

        def padded(x):  # the last slice must have the full chunk size
            return ops.concatenate([x, ops.zeros((size, *x.shape[1:]), x.dtype)])

        states, weights = padded(states), padded(weights)
        targets = padded(ops.cast(targets, "int32"))
        if teacher is not None:
            teacher_states, teacher_head = padded(teacher[0]), teacher[1]
        kernel_transposed = None if kernel is None else ops.transpose(kernel)
        sums = [ops.zeros_like(weights), ops.zeros_like(weights)]
        if gradients:
            d_kernel = ops.zeros(() if frozen_kernel else kernel.shape, "float32")
            sums += [ops.zeros_like(states), d_kernel, ops.zeros((vocabulary,), "float32")]

        def step(start, losses, right, *sums):
            h = ops.slice(states, (start, 0), (size, states.shape[1]))
            target = ops.slice(targets, (start,), (size,))
            weight = ops.slice(weights, (start,), (size,))
            raw = _logits(h, kernel, bias)
            teacher_logits = ()
            if teacher is not None:
                h_teacher = ops.slice(teacher_states, (start, 0), (size, teacher_states.shape[1]))
                teacher_raw = _logits(h_teacher, teacher_head.kernel, teacher_head.bias)
                teacher_logits = (capped(teacher_raw, teacher_head.soft_cap),)
            loss, is_right, d_raw = _fused(
                lambda *parts: self._chunk(*parts[:3], gradients, *parts[3:]),
                *(raw, target, weight, *teacher_logits),
            )
            losses = ops.slice_update(losses, (start,), loss)
            right = ops.slice_update(right, (start,), is_right)
            if gradients:
                d_states, d_kernel, d_bias = sums
                d = ops.cast(d_raw, h.dtype)
                d_h = d if kernel is None else ops.matmul(d, kernel_transposed)
                d_states = ops.slice_update(d_states, (start, 0), d_h)
                if not frozen_kernel:
                    d_kernel += _kernel_gradient(h, d, size)
                d_bias += 0.0 if bias is None else ops.sum(d_raw, axis=0)
                sums = d_states, d_kernel, d_bias
            return start + size, losses, right, *sums

        start = ops.zeros((), "int32")
        _, losses, right, *sums = _loop(lambda start, *_: start < count, step, (start, *sums))
        if gradients:
            sums[0] = sums[0][:count]
        return losses[:count], right[:count], *sums

    def _chunk(self, raw, targets, weights, gradients):
        """Compute the losses of one chunk of logits `raw` (C, V), before the cap.

        Returns:
            Losses (C,), correct flags (C,), and the gradient of the weighted sum of losses with
            respect to `raw`, or None.
        """
        logits = capped(raw, self.soft_cap)
        target = ops.take_along_axis(logits, ops.expand_dims(targets, 1), axis=1)
        largest = ops.max(logits, axis=1, keepdims=True)
        e = ops.exp(logits - largest)
        total = ops.sum(e, axis=1, keepdims=True)
        z = ops.log(total) + largest
        smoothing = self.label_smoothing
        loss = z - (1.0 - smoothing) * target + self.z_loss * ops.square(z)
        if smoothing:
            loss -= smoothing * ops.mean(logits, axis=1, keepdims=True)
        right = ops.cast(target >= largest, "float32")
        losses, right = ops.squeeze(loss, 1), ops.squeeze(right, 1)
        if not gradients:
            return losses, right, None
        weights = ops.expand_dims(weights, 1)
        d = e * ((1.0 + 2.0 * self.z_loss * z) * weights / total)
        if smoothing:
            d -= smoothing / logits.shape[1] * weights
        d -= ops.one_hot(targets, logits.shape[1], dtype="float32") * ((1.0 - smoothing) * weights)
        if self.soft_cap is not None:
            d *= 1.0 - ops.square(logits / self.soft_cap)
        return losses, right, d

    def _size(self, count, vocabulary):
        """Return the chunk size that splits tokens evenly, so the last chunk has little padding."""
        limit = self.chunk_size or max(1, CHUNK_ELEMENTS // vocabulary)
        chunks = -(-count // limit)
        at_least_one = max(1, chunks) if isinstance(count, int) else ops.maximum(1, chunks)
        return -(-count // at_least_one)


def _logits(states: Tensor, kernel: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return float32 logits (C, V) of states (C, D), before the cap."""
    raw = ops.cast(states if kernel is None else ops.matmul(states, kernel), "float32")
    return raw if bias is None else raw + ops.cast(bias, "float32")


def _kernel_gradient(states: Tensor, d: Tensor, size: int | Tensor) -> Tensor:
    """Return float32 `states^T d` (D, V) of one chunk; in float16 as a mean, which fits."""
    if keras.backend.standardize_dtype(states.dtype) != "float16":
        return ops.cast(ops.matmul(ops.transpose(states), d), "float32")
    size = ops.cast(size, "float32")
    mean = ops.cast(ops.cast(states, "float32") / size, states.dtype)
    return ops.cast(ops.matmul(ops.transpose(mean), d), "float32") * size


def capped(raw: Tensor, soft_cap: float | None) -> Tensor:
    """Return `soft_cap tanh(raw / soft_cap)`, or `raw` if `soft_cap` is None."""
    return raw if soft_cap is None else soft_cap * ops.tanh(raw / soft_cap)


def _fused(function, *inputs):
    """Run `function(*inputs)` as one fused kernel on TensorFlow; XLA fuses it elsewhere."""
    if keras.backend.backend() != "tensorflow":
        return function(*inputs)
    from keras_llm.layers.tensorflow import fused

    return fused(function, *inputs)


def _loop(condition, step, values):
    """Run a while loop one chunk at a time; TensorFlow's own loop runs iterations in parallel."""
    if keras.backend.backend() == "tensorflow":
        from keras_llm.training.tensorflow import sequential_loop as while_loop
    else:
        while_loop = ops.while_loop
    return while_loop(condition, step, values)
