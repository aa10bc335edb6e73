"""Cross-entropy over a vocabulary in chunks: no (B, T, V) tensor is ever held."""

import dataclasses

import keras
from keras import ops

CHUNK_ELEMENTS = 2**22  # logits of one chunk: 16 MiB in float32


@dataclasses.dataclass(frozen=True)
class ChunkedCrossEntropy:
    """The losses of tokens, from the states before the matrix product that gives their logits.

    With `l = softcap(states kernel + bias)`, `Z = log sum exp l` and e = `label_smoothing`:
    `loss = Z - (1 - e) l[target] - e mean(l) + z_loss Z^2`.

    A loop makes the logits of some tokens at a time. In training it makes their gradients in the
    same pass, so that no logit is computed twice: what is held is one chunk of logits, and the
    gradients of `states` and `kernel`.

    Args:
        label_smoothing: float in [0, 1). e.
        z_loss: float >= 0.
        soft_cap: float or None; logits become `soft_cap tanh(logits / soft_cap)`.
        chunk_size: int > 0, tokens in a chunk; None for as many as have 4 million logits.

    References:
        Szegedy et al., 2016, "Rethinking the Inception Architecture", section 7 (smoothing).
        Chowdhery et al., 2022, "PaLM", section 5 (z loss).
        Hsu et al., 2024, "Liger Kernel" (gradients in the forward pass).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None
    chunk_size: int | None = None

    def token_losses(self, states, kernel, targets, bias=None):
        """The losses, without gradients.

        Args:
            states: float tensor (N, D).
            kernel: float tensor (D, V).
            targets: int tensor (N,), in 0 .. V - 1.
            bias: float tensor (V,) or None.

        Returns:
            Two float32 tensors (N,): the losses, and 1 where no logit is larger than that of the
            target, else 0.
        """
        weights = ops.ones_like(targets, "float32")
        return self._run(states, kernel, bias, targets, weights)[:2]

    def weighted_sum(
        self, states, kernel, targets, weights, bias=None, frozen_kernel=False, teacher=None
    ):
        """The sum of `weights * losses`, with gradients for `states`, `kernel` and `bias`.

        Args:
            states, kernel, targets, bias: as of `token_losses`.
            weights: float tensor (N,), of any sign, constants.
            frozen_kernel: bool. Whether `kernel` has no gradient, which spares that work.
            teacher: of a subclass that learns from one: its `(states, head)`, float tensor
                (N, D') and `models.OutputHead`, constants; or None.

        Returns:
            The float32 sum, and the two tensors of `token_losses`, which have no gradient.
        """

        weights = ops.cast(weights, "float32")
        fixed = [kernel] if frozen_kernel else []
        learned = ([] if frozen_kernel else [kernel]) + ([] if bias is None else [bias])
        # Tensors: with variables TensorFlow's eager mode wants their gradients apart.
        learned = [ops.copy(weight) for weight in learned]

        @ops.custom_gradient
        def run(states, *learned):
            kernel, *bias = [*fixed, *learned]
            losses, right, *parts = self._run(
                states,
                kernel,
                bias[0] if bias else None,
                targets,
                weights,
                True,
                frozen_kernel,
                teacher,
            )
            if frozen_kernel:
                del parts[1]

            def gradients(*args, upstream=None):
                upstream = (args if upstream is None else upstream)[0]
                if isinstance(upstream, tuple):  # JAX passes all in one
                    upstream = upstream[0]
                return tuple(
                    ops.cast(upstream * ops.cast(part, "float32"), like.dtype)
                    for part, like in zip(parts, (states, *learned), strict=False)
                )

            return (ops.sum(losses * weights), losses, right), gradients

        total, losses, right = run(states, *learned)
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
        """Losses (N,), whether right (N,), and the gradients of states, kernel and bias."""
        count, vocabulary = ops.shape(states)[0], kernel.shape[1]
        size = self._size(count, vocabulary)

        def padded(x):  # so that the last slice is whole
            return ops.concatenate([x, ops.zeros((size, *x.shape[1:]), x.dtype)])

        states, weights = padded(states), padded(weights)
        targets = padded(ops.cast(targets, "int32"))
        if teacher is not None:
            teacher_states, teacher_head = padded(teacher[0]), teacher[1]
        back = ops.transpose(kernel)
        sums = [ops.zeros_like(weights), ops.zeros_like(weights)]
        if gradients:
            d_kernel = ops.zeros(() if frozen_kernel else kernel.shape, "float32")
            sums += [ops.zeros_like(states), d_kernel, ops.zeros((vocabulary,), "float32")]

        def step(start, losses, right, *sums):
            h = ops.slice(states, (start, 0), (size, states.shape[1]))
            target = ops.slice(targets, (start,), (size,))
            weight = ops.slice(weights, (start,), (size,))
            raw = _logits(h, kernel, bias)
            more = ()
            if teacher is not None:
                h_teacher = ops.slice(teacher_states, (start, 0), (size, teacher_states.shape[1]))
                taught = _logits(h_teacher, teacher_head.kernel, teacher_head.bias)
                more = (capped(taught, teacher_head.soft_cap),)
            loss, is_right, d_raw = _fused(
                lambda *parts: self._chunk(*parts[:3], gradients, *parts[3:]),
                *(raw, target, weight, *more),
            )
            losses = ops.slice_update(losses, (start,), loss)
            right = ops.slice_update(right, (start,), is_right)
            if gradients:
                d_states, d_kernel, d_bias = sums
                d = ops.cast(d_raw, h.dtype)
                d_states = ops.slice_update(d_states, (start, 0), ops.matmul(d, back))
                if not frozen_kernel:
                    d_kernel += ops.cast(ops.matmul(ops.transpose(h), d), "float32")
                d_bias += 0.0 if bias is None else ops.sum(d_raw, axis=0)
                sums = d_states, d_kernel, d_bias
            return start + size, losses, right, *sums

        start = ops.zeros((), "int32")
        _, losses, right, *sums = _loop(lambda start, *_: start < count, step, (start, *sums))
        if gradients:
            sums[0] = sums[0][:count]
        return losses[:count], right[:count], *sums

    def _chunk(self, raw, targets, weights, gradients):
        """Logits (C, V) before the cap -> losses (C,), whether right (C,), and the gradient of the
        weighted sum of losses with respect to `raw`, or None."""
        logits = capped(raw, self.soft_cap)
        at = ops.expand_dims(targets, 1)
        target = ops.take_along_axis(logits, at, axis=1)
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
        """Tokens in a chunk: as many in each, so that little of the last is padding."""
        most = self.chunk_size or max(1, CHUNK_ELEMENTS // vocabulary)
        chunks = -(-count // most)
        at_least_one = max(1, chunks) if isinstance(count, int) else ops.maximum(1, chunks)
        return -(-count // at_least_one)


def _logits(states, kernel, bias):
    """(C, D) -> float32 (C, V), before the cap."""
    raw = ops.cast(ops.matmul(states, kernel), "float32")
    return raw if bias is None else raw + ops.cast(bias, "float32")


def capped(raw, soft_cap):
    """`raw` itself, or `soft_cap tanh(raw / soft_cap)`."""
    return raw if soft_cap is None else soft_cap * ops.tanh(raw / soft_cap)


def _fused(function, *inputs):
    """`function(*inputs)` in one pass over the logits; XLA does that by itself where it is used."""
    if keras.backend.backend() != "tensorflow":
        return function(*inputs)
    from keras_llm.layers.tensorflow import fused

    return fused(function, *inputs)


def _loop(condition, step, values):
    """A loop that makes one chunk at a time; TensorFlow's would make several at once."""
    if keras.backend.backend() == "tensorflow":
        from keras_llm.training.tensorflow import sequential_loop as while_loop
    else:
        while_loop = ops.while_loop
    return while_loop(condition, step, values)
