"""LiteRT's two ways to run a file, behind one interface.

A tensor that one signature puts out and one takes in under the same name (a key-value cache) is
state: it stays inside the runtime between calls.
"""

import atexit
import functools
import importlib.util
import mmap
import os
import pathlib
import sys

import numpy as np

from keras_llm.errors import InputError
from keras_llm.silence import silent_stderr

_IN_MEMORY = ":memory"  # XNNPACK's name for a weight cache without a file
RUNTIMES = ("compiled", "interpreter")


def open_runtime(path, begin, end, runtime, num_threads, xnnpack=True):
    """Load the model in the bytes `begin .. end` of a file.

    Args:
        path: path of the file.
        begin, end: ints.
        runtime: "compiled" for LiteRT's CompiledModel, "interpreter" for its interpreter, or
            None for the first of them that this installation has.
        num_threads: int > 0, or None for one for each core up to 4.
        xnnpack: bool. Whether XNNPACK computes what it can.

    Raises:
        InputError: if the argument is unknown or the runtime cannot read the file.
    """
    if runtime not in (*RUNTIMES, None):
        raise InputError(f"`runtime` must be one of {RUNTIMES} or None, got {runtime!r}.")
    if runtime is None:
        try:
            import ai_edge_litert.compiled_model  # noqa: F401, is it there?

            runtime = "compiled"
        except ImportError:
            runtime = "interpreter"
    runtime_class = {"compiled": CompiledRuntime, "interpreter": InterpreterRuntime}[runtime]
    try:
        return runtime_class(pathlib.Path(path), begin, end, num_threads, xnnpack)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot load {path}: {error}") from None


class _Runtime:
    """What both share.

    Attributes:
        inputs, outputs: signature name -> {tensor name: (dtype, shape)}.
        state: the names of the tensors that stay inside.
    """

    def __init__(self, inputs, outputs):
        self.inputs, self.outputs = inputs, outputs
        taken, given = ({n for row in t.values() for n in row} for t in (inputs, outputs))
        self.state = taken & given


class CompiledRuntime(_Runtime):
    """LiteRT's CompiledModel. State is read and written in place: its input and its output are one
    buffer, so that updating a cache moves only what is new."""

    def __init__(self, path, begin, end, num_threads, xnnpack):
        from ai_edge_litert.compiled_model import CompiledModel, CpuKernelMode, CpuOptions, Options

        mode = CpuKernelMode.DELEGATE if xnnpack else CpuKernelMode.BUILTIN
        cpu = CpuOptions(
            num_threads=num_threads or default_threads(),
            kernel_mode=mode,
            # Signatures share one packed copy of the weights, instead of one each.
            xnnpack_weight_cache_path=_IN_MEMORY if xnnpack else "",
        )
        how = {"environment": _environment(), "options": Options(cpu_options=cpu)}
        with silent_stderr():  # it tells of accelerators that are not there
            if begin == 0:
                self._model = CompiledModel.from_file(str(path), **how)
            else:
                self._bytes = _part(path, begin, end)
                self._model = CompiledModel.from_buffer(self._bytes, **how)
        names = self._model.get_signature_list()
        super().__init__(
            {s: _rows(self._model.get_input_tensor_details(s)) for s in names},
            {s: _rows(self._model.get_output_tensor_details(s)) for s in names},
        )
        self._buffers, self._calls = {}, {}

    def run(self, signature, arrays):
        """Run a signature.

        Args:
            signature: str.
            arrays: dict name -> array, the inputs that are not state.

        Returns:
            dict name -> array, the outputs that are not state.
        """
        if signature not in self._calls:
            with silent_stderr():
                self._calls[signature] = self._prepare(signature)
        inputs, outputs = self._calls[signature]
        for name, array in arrays.items():
            inputs[name].write(array)
        self._model.run_by_name(signature, inputs, outputs)
        results = {}
        for name, (dtype, shape) in self.outputs[signature].items():
            if name not in self.state:
                results[name] = outputs[name].read(int(np.prod(shape)), dtype).reshape(shape)
        return results

    def _prepare(self, signature):
        """The buffers of a signature; those of state are shared by all."""

        def buffers(rows, create):
            found = {}
            for name, (dtype, shape) in rows.items():
                if name in self.state:
                    if name not in self._buffers:
                        self._buffers[name] = create(signature, name)
                        self._buffers[name].write(np.zeros(shape, dtype))
                    found[name] = self._buffers[name]
                else:
                    found[name] = create(signature, name)
            return found

        return (
            buffers(self.inputs[signature], self._model.create_input_buffer_by_name),
            buffers(self.outputs[signature], self._model.create_output_buffer_by_name),
        )


class InterpreterRuntime(_Runtime):
    """TFLite's interpreter. State goes through Python, a copy each way.

    With `keep_all`, and without XNNPACK, `tensor` tells what a run left in any of its tensors.
    """

    def __init__(self, path, begin, end, num_threads, xnnpack, keep_all=False):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kind = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        content = (
            {"model_path": str(path)} if begin == 0 else {"model_content": _part(path, begin, end)}
        )
        with silent_stderr():  # it tells that it uses XNNPACK
            self._interpreter = Interpreter(
                **content,
                num_threads=num_threads or default_threads(),
                experimental_op_resolver_type=kind,
                experimental_preserve_all_tensors=keep_all,
            )
            names = self._interpreter.get_signature_list()
            self._runners = {s: self._interpreter.get_signature_runner(s) for s in names}
        super().__init__(
            {s: _rows(r.get_input_details()) for s, r in self._runners.items()},
            {s: _rows(r.get_output_details()) for s, r in self._runners.items()},
        )
        self._held = {}

    def run(self, signature, arrays):
        """As `CompiledRuntime.run`."""
        inputs = dict(arrays)
        for name, (dtype, shape) in self.inputs[signature].items():
            if name in self.state:
                if name not in self._held:
                    self._held[name] = np.zeros(shape, dtype)
                inputs[name] = self._held[name]
        outputs = self._call(signature, inputs)
        self._held |= {name: value for name, value in outputs.items() if name in self.state}
        return {name: value for name, value in outputs.items() if name not in self.state}

    def tensor(self, signature, index):
        """The value of a tensor of a signature's graph after a run."""
        subgraph = self._runners[signature]._subgraph_index
        return self._interpreter.get_tensor(index, subgraph)

    def _call(self, signature, inputs):
        return self._runners[signature](**inputs)


@functools.cache
def _environment():
    """LiteRT's environment, one for the process."""
    from ai_edge_litert.environment import Environment

    package = pathlib.Path(importlib.util.find_spec("ai_edge_litert").origin).parent
    atexit.register(_mute)
    with silent_stderr():
        return Environment.create(runtime_path=str(package))


def _mute():
    """When Python has ended, LiteRT tells line by line what it takes down."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def default_threads():
    """One for each core, up to 4: phones have no more fast ones."""
    return min(4, len(os.sched_getaffinity(0)))


def _part(path, begin, end):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[begin:end]


def _rows(details):
    return {
        name: (np.dtype(d["dtype"]), tuple(int(n) for n in d["shape"]))
        for name, d in sorted(details.items())
    }
