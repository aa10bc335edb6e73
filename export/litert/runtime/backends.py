"""Wrap LiteRT's two runtimes, CompiledModel and the interpreter, in one interface.

A tensor that is an output of a signature and an input of a signature under the same name, such as
a key-value cache, is state: it stays in the runtime between calls.
"""

import abc
import atexit
import functools
import importlib.util
import mmap
import os
import pathlib
import sys
from typing import Any

import numpy as np

from keras_llm.errors import InputError, optional_packages
from keras_llm.export.litert.runtime.model_check import check_model
from keras_llm.silence import silent_stderr
from keras_llm.types import PathLike

_IN_MEMORY = ":memory"  # XNNPACK's name for a weight cache without a file
RUNTIMES = ("compiled", "interpreter")


def open_runtime(
    path: PathLike,
    begin: int,
    end: int,
    runtime: str | None,
    num_threads: int | None,
    xnnpack: bool = True,
) -> "CompiledRuntime | InterpreterRuntime":
    """Load the model in the bytes `begin .. end` of a file.

    Args:
        path: path of the file.
        begin, end: ints.
        runtime: "compiled" for LiteRT's CompiledModel, "interpreter" for its interpreter, or
            None for the first one that is installed.
        num_threads: int > 0, or None for one thread for each core, at most 4.
        xnnpack: bool. Whether to use XNNPACK for the ops that it supports.

    Raises:
        InputError: if `runtime` is unknown or the runtime cannot load the file.
    """
    if runtime not in (*RUNTIMES, None):
        raise InputError(f"`runtime` must be one of {RUNTIMES} or None, got {runtime!r}.")
    if runtime is None:
        try:
            import ai_edge_litert.compiled_model  # noqa: F401, check that it is installed

            runtime = "compiled"
        except ImportError:
            runtime = "interpreter"
    path = pathlib.Path(path)
    check_model(path, begin, end)
    runtime_class = {"compiled": CompiledRuntime, "interpreter": InterpreterRuntime}[runtime]
    try:
        return runtime_class(path, begin, end, num_threads, xnnpack)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot load {path}: {error}") from None


class _Runtime(abc.ABC):
    """Base class of the runtimes.

    Attributes:
        inputs, outputs: signature name -> {tensor name: (dtype, shape)}.
        state: set of the names of the state tensors.
    """

    def __init__(
        self,
        path: pathlib.Path,
        inputs: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]],
        outputs: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]],
    ) -> None:
        self._file_path, self.inputs, self.outputs = path, inputs, outputs
        input_names, output_names = (
            {n for row in t.values() for n in row} for t in (inputs, outputs)
        )
        self.state = input_names & output_names
        for name in self.state:
            rows = [*inputs.values(), *outputs.values()]
            if len({row[name] for row in rows if name in row}) > 1:
                raise ValueError(f"the tensor {name!r} has several shapes or types")

    def run(self, signature: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            signature: str.
            arrays: dict of name to array, the inputs that are not state.

        Returns:
            A dict of name to array, the outputs that are not state.

        Raises:
            InputError: if the signature has other inputs, or the runtime fails.
        """
        expected = {n: row for n, row in self.inputs[signature].items() if n not in self.state}
        if {name: (array.dtype, array.shape) for name, array in arrays.items()} != expected:
            raise InputError(
                f"{self._file_path}: the signature {signature!r} has the inputs {expected}, which "
                "differ from those that its task passes."
            )
        try:
            return self._run(signature, arrays)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"LiteRT cannot run {self._file_path}: {error}") from None

    @abc.abstractmethod
    def _run(self, signature, arrays):
        """Run a signature on checked inputs."""


class CompiledRuntime(_Runtime):
    """LiteRT's CompiledModel.

    State is updated in place: its input and output share a buffer, so a cache update writes only
    the new entries.
    """

    def __init__(
        self, path: pathlib.Path, begin: int, end: int, num_threads: int | None, xnnpack: bool
    ) -> None:
        with optional_packages("LiteRTModel"):
            from ai_edge_litert.compiled_model import (
                CompiledModel,
                CpuKernelMode,
                CpuOptions,
                Options,
            )

        mode = CpuKernelMode.DELEGATE if xnnpack else CpuKernelMode.BUILTIN
        cpu = CpuOptions(
            num_threads=num_threads or default_threads(),
            kernel_mode=mode,
            # Signatures share one packed copy of the weights, instead of one each.
            xnnpack_weight_cache_path=_IN_MEMORY if xnnpack else "",
        )
        options = {"environment": _environment(), "options": Options(cpu_options=cpu)}
        with silent_stderr():  # it logs missing accelerators
            if begin == 0:
                self._model = CompiledModel.from_file(str(path), **options)
            else:
                self._bytes = _part(path, begin, end)
                self._model = CompiledModel.from_buffer(self._bytes, **options)
        names = self._model.get_signature_list()
        super().__init__(
            path,
            {s: _rows(self._model.get_input_tensor_details(s)) for s in names},
            {s: _rows(self._model.get_output_tensor_details(s)) for s in names},
        )
        self._buffers: dict[Any, Any] = {}
        self._calls: dict[Any, Any] = {}

    def _run(self, signature, arrays):
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
        """Create the buffers of a signature; all signatures share those of state."""

        def buffers(rows, create):
            result = {}
            for name, (dtype, shape) in rows.items():
                if name in self.state:
                    if name not in self._buffers:
                        self._buffers[name] = create(signature, name)
                        self._buffers[name].write(np.zeros(shape, dtype))
                    result[name] = self._buffers[name]
                else:
                    result[name] = create(signature, name)
            return result

        return (
            buffers(self.inputs[signature], self._model.create_input_buffer_by_name),
            buffers(self.outputs[signature], self._model.create_output_buffer_by_name),
        )


class InterpreterRuntime(_Runtime):
    """TFLite's interpreter.

    State passes through Python and is copied in and out. With `keep_all` and without XNNPACK,
    `tensor` can read any tensor after a run.
    """

    def __init__(
        self,
        path: pathlib.Path,
        begin: int,
        end: int,
        num_threads: int | None,
        xnnpack: bool,
        keep_all: bool = False,
    ) -> None:
        with optional_packages("LiteRTModel"):
            from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kind = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        content = (
            {"model_path": str(path)} if begin == 0 else {"model_content": _part(path, begin, end)}
        )
        with silent_stderr():  # it logs that it uses XNNPACK
            self._interpreter = Interpreter(
                **content,
                num_threads=num_threads or default_threads(),
                experimental_op_resolver_type=kind,
                experimental_preserve_all_tensors=keep_all,
            )
            names = self._interpreter.get_signature_list()
            self._runners = {s: self._interpreter.get_signature_runner(s) for s in names}
        super().__init__(
            path,
            {s: _rows(r.get_input_details()) for s, r in self._runners.items()},
            {s: _rows(r.get_output_details()) for s, r in self._runners.items()},
        )
        self._held: dict[str, np.ndarray] = {}

    def _run(self, signature, arrays):
        inputs = dict(arrays)
        for name, (dtype, shape) in self.inputs[signature].items():
            if name in self.state:
                if name not in self._held:
                    self._held[name] = np.zeros(shape, dtype)
                inputs[name] = self._held[name]
        outputs = self._call(signature, inputs)
        self._held |= {name: value for name, value in outputs.items() if name in self.state}
        return {name: value for name, value in outputs.items() if name not in self.state}

    def tensor(self, signature: str, index: int) -> np.ndarray:
        """Return the value of a tensor of a signature's graph after a run."""
        subgraph = self._runners[signature]._subgraph_index
        return self._interpreter.get_tensor(index, subgraph)

    def _call(self, signature, inputs):
        return self._runners[signature](**inputs)


@functools.cache
def _environment():
    """Return LiteRT's environment, of which a process has one."""
    with optional_packages("LiteRTModel"):
        from ai_edge_litert.environment import Environment

    package = pathlib.Path(importlib.util.find_spec("ai_edge_litert").origin).parent
    atexit.register(_mute)
    with silent_stderr():
        return Environment.create(runtime_path=str(package))


def _mute() -> None:
    """Redirect stderr to /dev/null at exit, because LiteRT logs its teardown."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def default_threads() -> int:
    """Return the number of cores, at most 4, the number of fast cores of a phone."""
    return min(4, len(os.sched_getaffinity(0)))


def _part(path: pathlib.Path, begin: int, end: int) -> bytes:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[begin:end]


def _rows(details):
    return {
        name: (np.dtype(d["dtype"]), tuple(int(n) for n in d["shape"]))
        for name, d in sorted(details.items())
    }
