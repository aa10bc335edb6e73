"""Compile the functions of `compiled.CompiledGenerator` with TensorFlow."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.func_graph import dismantle_func_graph


def compiled(
    model: keras.Model, function: Callable[..., Any], like: Sequence[Any], jit_compile: bool
) -> Callable[..., Any]:
    """Compile a function of tensors for given shapes and dtypes.

    Args:
        model: the model whose weights the function reads.
        function: function of tensors or nested structures of tensors.
        like: list of tensors, or of `keras.KerasTensor`s whose shapes may contain None.
        jit_compile: bool. Whether to compile with XLA.
    """
    specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), like)
    traced = tf.function(function, jit_compile=jit_compile, autograph=False)
    return traced.get_concrete_function(*specs)


def of_any_size(
    model: keras.Model, function: Callable[..., Any], ranks: Sequence[int]
) -> Callable[..., Any]:
    """Compile a function for int32 tensors of given ranks and any shape.

    Args:
        model: the model whose weights the function reads.
        function: function of tensors.
        ranks: tuple of ints, the rank of each argument.
    """
    return tf.function(
        function, input_signature=[tf.TensorSpec((None,) * rank, tf.int32) for rank in ranks]
    )


def call_python(
    function: Callable[..., Any], arguments: Sequence[Any], shape: Sequence[int | None], dtype: str
) -> Any:
    """Call a Python function of arrays, in eager mode or a graph without XLA.

    Args:
        function: function of NumPy arrays that returns one.
        arguments: list of tensors.
        shape, dtype: shape, where None is any size, and dtype of the result.
    """
    if tf.executing_eagerly():
        return tf.convert_to_tensor(function(*(argument.numpy() for argument in arguments)))
    return tf.ensure_shape(tf.numpy_function(function, arguments, dtype), shape)


def release(function: Any) -> None:
    """Free the graphs of a function from `compiled`. It cannot be called afterwards."""
    graph = function.graph
    del function
    free_graph(graph)


def free_graph(graph: Any) -> None:
    """Free a `FuncGraph` and the graphs of its loops and branches.

    The garbage collector cannot free it because its tensors refer to it from C++.
    """
    inner = [row.graph for row in graph._functions.values() if hasattr(row, "graph")]
    for other in inner:
        if other is not graph:
            free_graph(other)
    dismantle_func_graph(graph)
    graph.inputs.clear()
    graph.outputs.clear()
    graph.structured_outputs = graph.structured_input_signature = None
