"""Load mutated on-device files, each in a fork, and print how each loader ended.

python tests/export/mutate_models.py FILE COUNT SEED RUNTIME

The mutated model has a right checksum. Prints one JSON object: a dict of an outcome to the number
of files ("ok", "InputError", the name of a signal or of another exception), and a list of the seeds
of files that neither loaded nor raised InputError.
"""

import collections
import json
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import zipfile
import zlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_llm.errors import InputError
from keras_llm.export.litert.runtime.model import LiteRTModel

_SECONDS, _BYTES = 30, 6 << 30
_NUMBERS = [-1, 0, 1, 2, 7, 127, 1000, 65536, 2**20, 2**31 - 1, -(2**31)]


def split(path):
    """Return the bytes of the model in a file, its manifest, and its other files by name."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("keras_llm.json"))
        others = {n: archive.read(n) for n in archive.namelist() if n != "keras_llm.json"}
    begin, end = manifest["model"]
    return pathlib.Path(path).read_bytes()[begin:end], manifest, others


def join(path, model, manifest, others):
    """Write a file with a model, so that its checksum is right."""
    size, checksum = len(model), zlib.crc32(model)
    manifest = {**manifest, "model": [0, size], "size": size, "crc32": checksum}
    pathlib.Path(path).write_bytes(model)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("keras_llm.json", json.dumps(manifest))
        for name, content in others.items():
            archive.writestr(name, content)


class Mutator:
    """Change a TFLite model at random places.

    Args:
        model: bytes.
    """

    def __init__(self, model):
        self.model = model
        offsets = [b.offset for b in self._unpacked().buffers if b.offset > 1]
        self.begin_of_weights = min(offsets, default=len(model))

    def changed(self, seed):
        """Return another model, bytes."""
        rng = random.Random(seed)
        return self._changed_bytes(rng) if rng.random() < 0.3 else self._changed_tables(rng)

    def _unpacked(self):
        return schema.ModelT.InitFromPackedBuf(self.model, 0)

    def _changed_bytes(self, rng):
        content = bytearray(self.model)
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            place = rng.randrange(self.begin_of_weights)
            if rng.random() < 0.7:
                content[place] = rng.randrange(256)
            else:
                place &= ~3
                content[place : place + 4] = (_number(rng) % 2**32).to_bytes(4, "little")
        return bytes(content)

    def _changed_tables(self, rng):
        model = self._unpacked()
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            change = rng.choice(_CHANGES)
            try:
                change(rng, model, rng.choice(model.subgraphs))
            except (TypeError, IndexError, ValueError, OverflowError):
                continue  # the place has nothing to change
        try:
            content = _packed(model)
            shift = max(0, -(-(len(content) - self.begin_of_weights) // 64) * 64)
            for buffer in model.buffers:
                if 1 < buffer.offset < 2**40:
                    buffer.offset += shift
            content = _packed(model)
        except (
            TypeError,
            ValueError,
            OverflowError,
            AssertionError,
            flatbuffers.builder.BuilderSizeError,
        ):
            return self._changed_bytes(rng)
        content += b"\0" * (self.begin_of_weights + shift - len(content))
        return content + self.model[self.begin_of_weights :]


def _packed(model):
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _number(rng):
    return rng.choice([*_NUMBERS, rng.randrange(-5, 300)])


def _index(rng, graph):
    return rng.choice([_number(rng), rng.randrange(len(graph.tensors)), -1])


def _tensor(rng, graph):
    ends = [*graph.inputs, *graph.outputs]
    return graph.tensors[rng.choice(ends)] if rng.random() < 0.3 else rng.choice(graph.tensors)


def _change_shape(rng, model, graph):
    tensor = _tensor(rng, graph)
    shape = list(tensor.shape)
    kind = rng.randrange(3)
    if kind == 0:
        shape[rng.randrange(len(shape))] = _number(rng)
    elif kind == 1:
        shape.append(rng.randrange(50))
    else:
        shape.pop()
    tensor.shape = np.array(shape, "int32")


def _change_type(rng, model, graph):
    _tensor(rng, graph).type = rng.randrange(23)


def _change_buffer(rng, model, graph):
    buffer = rng.choice(model.buffers)
    kind = rng.randrange(3)
    if kind == 0:
        _tensor(rng, graph).buffer = rng.choice(
            [abs(_number(rng)), rng.randrange(len(model.buffers))]
        )
    elif kind == 1:
        buffer.offset = rng.choice([2, 64, 2**40, 2**63, rng.randrange(2**20)])
        buffer.size = rng.choice([1, 8, 2**40, 2**64 - 8, buffer.size])
    else:
        buffer.data = buffer.data[: rng.randrange(len(buffer.data))]


def _change_constant(rng, model, graph):
    buffers = [b for b in model.buffers if b.data is not None and 4 <= len(b.data) <= 64]
    buffer = rng.choice(buffers)
    numbers = np.frombuffer(bytes(buffer.data[: len(buffer.data) // 4 * 4]), "int32").copy()
    numbers[rng.randrange(len(numbers))] = _number(rng)
    buffer.data = np.frombuffer(numbers.tobytes(), "uint8")


def _change_quantization(rng, model, graph):
    tensor = _tensor(rng, graph)
    quantization = tensor.quantization or schema.QuantizationParametersT()
    scales = [rng.choice([1, 0, -1, float("nan"), 1e-30]) for _ in range(rng.choice([0, 1, 2, 5]))]
    quantization.scale = np.array(scales, "float32")
    zero_points = [_number(rng) for _ in range(rng.choice([0, 1, 3]))]
    quantization.zeroPoint = np.array(zero_points, "int64")
    quantization.quantizedDimension = rng.choice([0, 1, 5, -1, 2**30])
    tensor.quantization = quantization


def _change_tensors_of_operator(rng, model, graph):
    operator = rng.choice(graph.operators)
    side = rng.choice(["inputs", "inputs", "outputs"])
    tensors = list(getattr(operator, side))
    kind = rng.randrange(4)
    if kind < 2:
        tensors[rng.randrange(len(tensors))] = _index(rng, graph)
    elif kind == 2:
        tensors.pop(rng.randrange(len(tensors)))
    else:
        tensors.append(_index(rng, graph))
    setattr(operator, side, np.array(tensors, "int32"))


def _change_code(rng, model, graph):
    if rng.random() < 0.5:
        codes = [abs(_number(rng)), rng.randrange(len(model.operatorCodes))]
        rng.choice(graph.operators).opcodeIndex = rng.choice(codes)
        return
    code = rng.choice(model.operatorCodes)
    code.builtinCode = rng.randrange(212)
    code.deprecatedBuiltinCode = min(127, code.builtinCode)


def _change_options(rng, model, graph):
    options = rng.choice(graph.operators).builtinOptions
    names = [n for n, v in vars(options).items() if isinstance(v, (int, float))]
    setattr(options, rng.choice(names), max(-128, min(127, _number(rng))))


def _change_order(rng, model, graph):
    if rng.random() < 0.5:
        rng.shuffle(graph.operators)
    else:
        graph.operators.insert(0, rng.choice(graph.operators))


def _change_signature(rng, model, graph):
    signature = rng.choice(model.signatureDefs)
    rows = rng.choice([signature.inputs, signature.outputs])
    kind = rng.randrange(4)
    if kind == 0:
        signature.subgraphIndex = abs(_number(rng))
    elif kind == 1:
        rows.pop()
    elif kind == 2:
        rng.choice(rows).name = rng.choice(rows).name
    else:
        rng.choice(rows).tensorIndex = abs(_index(rng, graph))


def _change_ends(rng, model, graph):
    side = rng.choice(["inputs", "outputs"])
    tensors = list(getattr(graph, side))
    tensors[rng.randrange(len(tensors))] = _index(rng, graph)
    setattr(graph, side, np.array(tensors, "int32"))


_CHANGES = [
    *(_change_shape, _change_shape, _change_type, _change_buffer, _change_constant),
    *(_change_constant, _change_quantization, _change_tensors_of_operator, _change_code),
    *(_change_options, _change_options, _change_order, _change_signature, _change_ends),
]


def _use(path, runtime):
    model = LiteRTModel(path, num_threads=1, runtime=runtime)
    if "signature" in model.manifest:
        getattr(model, model.manifest["signature"])("the word is")
    else:
        model.generate("the word is", 3, temperature=0.0)


def _outcome(path, runtime):
    """Use a file in a fork; return how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        outcome = "?"
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.alarm(_SECONDS)
            _use(path, runtime)
            outcome = "ok"
        except BaseException as error:
            is_line = len(str(error).splitlines()) == 1
            outcome = "InputError" if type(error) is InputError and is_line else repr(error)[:300]
        finally:
            os.write(writing, outcome.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        outcome = answer.read().decode()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else outcome


def main():
    path, count, seed, runtime = sys.argv[1:]
    model, manifest, others = split(path)
    mutator = Mutator(model)
    outcomes, failed = collections.Counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "model.tflite"
        for number in range(int(seed), int(seed) + int(count)):
            join(copy, mutator.changed(number), manifest, others)
            outcome = _outcome(copy, runtime)
            outcomes[outcome] += 1
            if outcome not in ("ok", "InputError"):
                failed[number] = outcome
    print(json.dumps({"outcomes": outcomes, "failed": failed}))


if __name__ == "__main__":
    main()
