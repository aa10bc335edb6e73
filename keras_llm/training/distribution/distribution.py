"""Training on several devices: by `tf.distribute` on TensorFlow, `keras.distribution` on JAX."""

import math

import keras

from keras_llm.errors import InputError

KINDS = ("mirrored", "multi_worker", "jax_data", "jax_model")
# The projections that a device computes whole heads, features, tokens or experts of, and those
# that add up what the devices found (Shoeybi et al., 2019, "Megatron-LM", section 3).
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


def layout_map(mesh):
    """How the weights of this library's models are split over devices.

    Token embeddings are split by token, attention by head, feed-forward networks by hidden feature
    and experts by expert, so that each block adds up what its devices found twice; norms and all
    else are whole on every device.

    Args:
        mesh: `keras.distribution.DeviceMesh` with the axes "batch" and "model".

    Returns:
        `keras.distribution.LayoutMap` of regular expressions over the paths of weights; add to it
        what a layer of your own needs. `TensorParallel` uses it.

    Raises:
        InputError: if the mesh has no axis "model".

    Reference:
        Shoeybi et al., 2019, "Megatron-LM", section 3.
    """
    if "model" not in mesh.axis_names:
        raise InputError(f"`mesh` must have an axis 'model', got {list(mesh.axis_names)}.")
    found = keras.distribution.LayoutMap(mesh)
    for path, axes in _LAYOUTS.items():
        found[path] = axes
    return found


class TensorParallel(keras.distribution.ModelParallel):
    """`keras.distribution.ModelParallel` for the models of this library, on the JAX backend.

    The weights are split as `layout_map` says. A dimension that the devices do not divide, e.g.
    a vocabulary of 61 over 2, is whole on each instead: the numbers are the same, the memory is
    not spared. Set it before the model is built:

        keras.distribution.set_distribution(training.TensorParallel())

    Args:
        model_devices: int > 0, how many devices share a model; the others split the batch.
            Defaults to all.
        devices: list of device names; defaults to all that there are.

    Raises:
        InputError: on another backend, or if `model_devices` does not divide the devices.
    """

    def __init__(self, model_devices=None, devices=None):
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

    def get_variable_layout(self, variable):
        layout = super().get_variable_layout(variable)
        sizes = dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))
        axes = [
            None if axis is None or size % sizes[axis] else axis
            for axis, size in zip(layout.axes, variable.shape, strict=True)
        ]
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def set_distribution(kind):
    """Train what is built from here on by several devices.

    Args:
        kind: str, one of "mirrored", the devices of this machine; "multi_worker", all workers
            that the environment variable TF_CONFIG lists; "jax_data", the devices split the batch;
            "jax_model", they split the model (`TensorParallel`); or None, as without a call.

    Raises:
        InputError: if this backend, this machine or TF_CONFIG cannot do it, saying what can.
    """
    if kind is None:
        if keras.backend.backend() == "tensorflow":
            _tensorflow().set_strategy(None)
        else:
            keras.distribution.set_distribution(None)
        return
    if kind not in KINDS:
        raise InputError(f"`kind` must be of {', '.join(KINDS)}, got {kind!r}.")
    on_jax = kind.startswith("jax_")
    _check_backend("jax" if on_jax else "tensorflow", f"distribution {kind}")
    if not on_jax:
        _tensorflow().set_strategy(kind)
        return
    devices = len(keras.distribution.list_devices())
    if devices < 2:
        raise InputError(
            f"distribution {kind} needs two devices or more, and JAX sees {devices}. For a try "
            "on CPUs: XLA_FLAGS=--xla_force_host_platform_device_count=2."
        )
    made = TensorParallel() if kind == "jax_model" else keras.distribution.DataParallel()
    keras.distribution.set_distribution(made)


def check_batches(data, batch_size=None, name="x"):
    """Raise InputError if a batch cannot be split over JAX's devices, which take parts of one size.

    Args:
        data: a `tf.data.Dataset`, whose batches must have a known number of rows, or a nest of
            arrays. Anything else is passed over, and all of it without `keras.distribution`.
        batch_size: int or None, as of `fit`, for arrays.
        name: str, what is told to be wrong.
    """
    found = keras.distribution.distribution()
    if found is None:
        return
    parts = math.prod(found.device_mesh.shape)
    if isinstance(found, keras.distribution.ModelParallel):
        parts = found.num_model_replicas
    if parts == 1:
        return
    sizes = set()
    if hasattr(data, "element_spec"):
        sizes = {spec.shape[0] for spec in keras.tree.flatten(data.element_spec)}
    elif data is not None:
        batch_size = batch_size or 32
        for array in keras.tree.flatten(data):
            whole, rest = divmod(len(array), batch_size) if hasattr(array, "shape") else (0, 0)
            sizes |= {batch_size} if whole else set()
            sizes |= {rest} if rest else set()
    for size in sizes:
        if size is None or size % parts:
            raise InputError(
                f"`{name}` has {'an unknown number of' if size is None else size} rows in a "
                f"batch, and {parts} devices split it: it must be a multiple of {parts} in "
                "all batches (`drop_remainder=True`)."
            )


def _check_backend(backend, what):
    found = keras.backend.backend()
    if found != backend:
        raise InputError(
            f"{what} needs Keras's {backend} backend, and this is {found}: set KERAS_BACKEND="
            f"{backend} before Python starts, e.g. KERAS_BACKEND={backend} keras-llm train ..."
        )


def _tensorflow():
    from keras_llm.training import tensorflow

    return tensorflow
