"""Define the base class of the graphs of SavedModels, and save them."""

import abc
import contextlib
import functools
import pathlib
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_llm.errors import ExportError
from keras_llm.export.saved_model.signatures.weights import SmallWeight, is_stored_small
from keras_llm.models.forward_cached import sharing_step
from keras_llm.types import PathLike, Tensor

if TYPE_CHECKING:
    from keras_llm.tasks import Task

STRINGS = tf.TensorSpec((None,), tf.string)
INTS = tf.TensorSpec((None,), tf.int32)
FLOATS = tf.TensorSpec((None,), tf.float32)


def save(module: tf.Module, folder: PathLike, signatures: dict[str, Any] | None = None) -> None:
    """Write a module as a SavedModel.

    Args:
        module: a `tf.Module` with `signatures()` and `defaults`.
        folder: path of the folder to write.
        signatures: the result of `module.signatures()`, or None to call it.

    Raises:
        ExportError: if the SavedModel cannot be written.
    """
    signatures = module.signatures() if signatures is None else signatures
    try:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, str(folder), signatures=signatures, options=options)
    except tf.errors.OpError as error:
        raise ExportError(f"{folder} cannot be written: {error.message}") from error
    if module.defaults:
        _write_defaults(pathlib.Path(folder) / "saved_model.pb", module.defaults)


def _write_defaults(path, defaults):
    """Add the default values of inputs to the signatures, for requests that omit them."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in saved.meta_graphs:
        for signature in graph.signature_def.values():
            for name in signature.inputs.keys() & defaults.keys():
                dtype = tf.dtypes.as_dtype(signature.inputs[name].dtype)
                value = tf.make_tensor_proto([defaults[name]], dtype)
                signature.defaults[name].CopyFrom(value)
    path.write_bytes(saved.SerializeToString(deterministic=True))


class GraphModule(tf.Module):
    """The module of a SavedModel, with the weights, shared by all signatures, and the tokenizer.

    Attributes:
        main: str. Name of the signature that is also `serving_default`.
        defaults: dict from the name of an optional input to its default number, or None.

    Args:
        task: a task.
        weights: None, or "float16" or "int8" to store matrices in fewer bits.
    """

    main: str | Any = None
    defaults: dict[str, Any] | None = None

    def __init__(self, task: "Task", weights: str | None = None) -> None:
        super().__init__()
        self._task = [task]  # in a list, so that tf.Module does not track it
        unique = uuid.uuid4().hex  # two versions may be loaded at the same time
        self.weights, self.small_weights, self.stored = [], [], []
        for index, variable in enumerate(task.model.variables):
            if weights is not None and is_stored_small(variable):
                small = SmallWeight(variable, weights, f"{unique}_{index}")
                self.small_weights.append(small)
                self.stored += small.stored
            else:
                self.weights.append(variable.value)
        self.tokenizer_resources = task.tokenizer.graph_resources()
        self._step = None

    @property
    def task(self) -> "Task":
        """The task."""
        return self._task[0]

    @abc.abstractmethod
    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        """Return a dict from signature name to a function and the dict of its arguments' specs."""

    def signatures(self) -> dict[str, Any]:
        """Return a dict from signature name, including `serving_default`, to concrete function."""
        traced = {name: self._traced(*row) for name, row in self.functions().items()}
        return {"serving_default": traced[self.main], **traced}

    def _traced(self, function, specs):
        specs = {
            name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()
        }

        def run(**inputs):
            with self._reading_weights(), sharing_step(self._shared_step):
                return function(**inputs)

        return tf.function(run, autograph=False).get_concrete_function(**specs)

    def _shared_step(self, forward_cached, model, *arguments):
        """Run a step of the decoder, which is traced once for all signatures."""
        if self._step is None:

            def step(*arguments):
                with self._reading_weights():
                    return forward_cached(model, *arguments)

            # Wrap it, so that saving does not find it and trace it again.
            self._step = functools.partial(tf.function(step, autograph=False))
        return self._step(*arguments)

    def _reading_weights(self):
        """Return a scope in which the model reads the weights that are stored in fewer bits."""
        if not self.small_weights:
            return contextlib.nullcontext()
        variables = filter(is_stored_small, self.task.model.variables)
        values = [small.value() for small in self.small_weights]
        return keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))


def check(condition: Tensor, message: str) -> Any:
    """Return an op that fails with InvalidArgument and a message if the condition is false."""
    return tf.debugging.Assert(condition, [message])


def clean(name: str, strings: Tensor) -> Tensor:
    """Convert strings (B,) of any bytes to valid UTF-8, with U+FFFD for invalid bytes.

    The op fails if there are no strings or one is empty. All further ops must depend on the result,
    or else they may fail first with a less helpful message.
    """
    with tf.control_dependencies(text_checks(name, strings)):
        return utf8(strings)


def text_checks(name: str, strings: Tensor) -> list[Any]:
    """Return ops that check that there are texts and that none is empty."""
    return [
        check(tf.size(strings) > 0, f"{name} must not be an empty list"),
        check(tf.reduce_all(tf.strings.length(strings) > 0), f"{name} must not be empty"),
    ]


def utf8(strings: Tensor) -> Tensor:
    """Convert strings of any bytes to valid UTF-8, with U+FFFD for invalid bytes."""
    return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")


def lengths_of(ids: tf.RaggedTensor) -> Tensor:
    """Return the row lengths of a ragged tensor, int32 (B,)."""
    return tf.cast(ids.row_lengths(), tf.int32)
