"""Distribute training with `tf.distribute` on TensorFlow and `keras.distribution` on JAX."""

import math
from typing import Any

import keras

from keras_llm.errors import InputError

KINDS = ("mirrored", "multi_worker", "jax_data", "jax_model")
# Column-parallel projections, split by head, feature, token or expert, and row-parallel ones, whose
# outputs are summed over devices (Shoeybi et al., 2019, "Megatron-LM", section 3).
_LAYOUTS = {
    r".*token_embedding/embeddings": ("model", None),
    r".*token_embedding/reverse_embeddings": (None, "model"),
    r".*masked_lm_head/bias": ("model",),
    r".*attention/(query|key|value)/kernel": (None, "model"),
    r".*attention/(query|key|value)/bias": ("model",),
    r".*attention/output/kernel": ("model", None),
    r".*feed_forward/(shared/)?(up|gate)/kernel": (None, "model"),
    r".*feed_forward/(shared/)?(up|gate)/bias": ("model",),
    r".*feed_forward/(shared/)?down/kernel": ("model", None),
    r".*feed_forward/(up|gate|down)": ("model", None, None),
}


def layout_map(mesh: keras.distribution.DeviceMesh) -> keras.distribution.LayoutMap:
    """Return the layout of this library's weights for tensor parallelism.

    Token embeddings are split by token, attention by head, feed-forward networks by hidden feature
    and mixtures of experts by expert, so each block needs two all-reduces. Norms and all other
    weights are replicated.

    Args:
        mesh: `keras.distribution.DeviceMesh` with the axes "batch" and "model".

    Returns:
        `keras.distribution.LayoutMap` of regular expressions for weight paths; add entries for your
        own layers. `TensorParallel` uses it.

    Raises:
        InputError: if the mesh has no axis "model".

    Reference:
        Shoeybi et al., 2019, "Megatron-LM", section 3.
    """
    if "model" not in mesh.axis_names:
        raise InputError(f"`mesh` must have an axis 'model', got {list(mesh.axis_names)}.")
    layouts = keras.distribution.LayoutMap(mesh)
    for path, axes in _LAYOUTS.items():
        layouts[path] = axes
    return layouts


class TensorParallel(keras.distribution.ModelParallel):
    """`keras.distribution.ModelParallel` for the models of this library, on the JAX backend.

    The weights are split according to `layout_map`. A dimension that is not divisible by the number
    of devices, e.g. a vocabulary of 61 over 2, is replicated: the result is the same, but no memory
    is saved. Set the distribution before building the model:

        keras.distribution.set_distribution(training.TensorParallel())

    Args:
        model_devices: int > 0, number of devices per model replica; the replicas split the batch.
            Defaults to all devices.
        devices: list of device names; defaults to all devices.

    Raises:
        InputError: on another backend, or if `model_devices` does not divide the devices.
    """

    def __init__(self, model_devices: int | None = None, devices: list[str] | None = None) -> None:
        _check_backend("jax", "TensorParallel")
        devices = devices or keras.distribution.list_devices()
        model_devices = model_devices or len(devices)
        if len(devices) % model_devices:
            raise InputError(
                f"`model_devices` must divide the {len(devices)} devices, got {model_devices}."
            )
        mesh = keras.distribution.DeviceMesh(
            (len(devices) // model_devices, model_devices), ("batch", "model"), devices
        )
        super().__init__(layout_map=layout_map(mesh), batch_dim_name="batch")

    def get_variable_layout(self, variable: keras.Variable) -> keras.distribution.TensorLayout:
        layout = super().get_variable_layout(variable)
        sizes = dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))
        axes = [
            None if axis is None or size % sizes[axis] else axis
            for axis, size in zip(layout.axes, variable.shape, strict=True)
        ]
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def set_distribution(kind: str | None) -> None:
    """Set the global distribution for models that are built afterwards.

    Args:
        kind: str or None. "mirrored": all devices of this machine; "multi_worker": all workers
            listed in the environment variable TF_CONFIG; "jax_data": the devices split the batch;
            "jax_model": the devices split the model (`TensorParallel`); None: no distribution.

    Raises:
        InputError: if the backend, the machine or TF_CONFIG does not support it, naming what is
            required.
    """
    if kind is None:
        if keras.backend.backend() == "tensorflow":
            _tensorflow().set_strategy(None)
        else:
            keras.distribution.set_distribution(None)
        return
    if kind not in KINDS:
        raise InputError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
    on_jax = kind.startswith("jax_")
    _check_backend("jax" if on_jax else "tensorflow", f"distribution {kind}")
    if not on_jax:
        _tensorflow().set_strategy(kind)
        return
    devices = len(keras.distribution.list_devices())
    if devices < 2:
        raise InputError(
            f"distribution {kind} needs at least two devices, and JAX sees {devices}. To try it on "
            "a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count=2."
        )
    by_model = kind == "jax_model"
    distribution = TensorParallel() if by_model else keras.distribution.DataParallel()
    keras.distribution.set_distribution(distribution)


def check_batches(data: Any, batch_size: int | None = None, name: str = "x") -> None:
    """Raise InputError if a batch cannot be split evenly over JAX's devices.

    Args:
        data: a `tf.data.Dataset`, whose batches must have a known number of rows, or a nest of
            arrays. Other data is not checked. Without `keras.distribution` nothing is checked.
        batch_size: int or None, the `batch_size` of `fit`, for arrays.
        name: str, the argument to name in the error.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    parts = math.prod(distribution.device_mesh.shape)
    if isinstance(distribution, keras.distribution.ModelParallel):
        parts = distribution.num_model_replicas
    if parts == 1:
        return
    sizes = set()
    if hasattr(data, "element_spec"):
        sizes = {spec.shape[0] for spec in keras.tree.flatten(data.element_spec)}
    elif data is not None:
        batch_size = batch_size or 32
        for array in keras.tree.flatten(data):
            full, rest = divmod(len(array), batch_size) if hasattr(array, "shape") else (0, 0)
            sizes |= {batch_size} if full else set()
            sizes |= {rest} if rest else set()
    for size in sizes:
        if size is None or size % parts:
            raise InputError(
                f"`{name}` has {'an unknown number of' if size is None else size} rows in a "
                f"batch, and {parts} devices split it: the number of rows must be a multiple of "
                f"{parts} in all batches (`drop_remainder=True`)."
            )


def _check_backend(backend, what):
    current = keras.backend.backend()
    if current != backend:
        raise InputError(
            f"{what} needs Keras's {backend} backend, got {current}: set KERAS_BACKEND={backend} "
            f"before Python starts, e.g. KERAS_BACKEND={backend} keras-llm train ..."
        )


def _tensorflow():
    from keras_llm.training import tensorflow

    return tensorflow
