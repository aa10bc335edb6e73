"""Run attention with the flash attention kernels of Keras's backends."""

import keras
from keras import ops

from keras_llm.types import Tensor


def is_available() -> bool:
    """Return whether `ops.dot_product_attention` is faster than our own formula: with GPU kernels.

    On TensorFlow it has none and repeats the keys of grouped heads; on TPUs it ignores some masks.
    """
    backend = keras.backend.backend()
    is_gpu = backend == "jax" and keras.distribution.list_devices()[0].startswith("gpu")
    return is_gpu or backend == "torch"


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Call `ops.dot_product_attention` with the arguments of `attention.attention`.

    A bias is not supported: Keras would round it to the dtype of the query.
    """
    key, value = (ops.cast(ops.transpose(x, (0, 2, 1, 3)), query.dtype) for x in (key, value))
    if mask is not None:  # the kernels take only masks of all T x S pairs
        pairs = (ops.shape(query)[1], ops.shape(key)[1])
        mask = ops.broadcast_to(ops.cast(mask, "bool"), (*ops.shape(mask)[:2], *pairs))
    return ops.dot_product_attention(query, key, value, mask=mask, scale=scale)
