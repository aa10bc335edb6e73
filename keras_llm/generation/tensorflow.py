"""How TensorFlow compiles what `compiled.CompiledGenerator` runs."""

import keras
import tensorflow as tf
from tensorflow.python.framework.func_graph import dismantle_func_graph


def compiled(model, function, like, jit_compile):
    """A function of tensors compiled for the shapes and dtypes of some.

    Args:
        model: the model whose weights it reads.
        function: function of tensors, or nests of them.
        like: list of tensors, or of `keras.KerasTensor`s, whose shapes may be open.
        jit_compile: bool, whether by XLA.
    """
    specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), like)
    traced = tf.function(function, jit_compile=jit_compile, autograph=False)
    return traced.get_concrete_function(*specs)


def of_any_size(model, function, ranks):
    """A function compiled for int32 tensors of some ranks.

    Args:
        model: the model whose weights it reads.
        function: function of tensors.
        ranks: tuple of ints, the rank of each.
    """
    return tf.function(
        function, input_signature=[tf.TensorSpec((None,) * rank, tf.int32) for rank in ranks]
    )


def release(function):
    """Free the graphs of a function from `compiled`, which cannot be called any more."""
    graph = function.graph
    del function
    free_graph(graph)


def free_graph(graph):
    """Free a `FuncGraph` and those of its loops and branches.

    Its tensors refer to it from C++, so the garbage collector cannot.
    """
    inner = [row.graph for row in graph._functions.values() if hasattr(row, "graph")]
    for other in inner:
        if other is not graph:
            free_graph(other)
    dismantle_func_graph(graph)
    graph.inputs.clear()
    graph.outputs.clear()
    graph.structured_outputs = graph.structured_input_signature = None
