"""Run a SavedModel in TensorFlow's C library, as a server in C++ would, without Python's API.

    python run_in_c_library.py SITE_PACKAGES SAVED_MODEL < request.json > answer.json

The request is an object with `inputs`, a list of [operation, output, dtype, shape, flat values],
`outputs`, a list of [name, operation, output], and `text_ops`, whether TensorFlow Text's
libraries are loaded first.
"""

import ctypes
import glob
import json
import math
import struct
import sys

DTYPES = {"float32": (1, "f"), "int32": (3, "i"), "bool": (10, "?"), "string": (7, None)}
STRING_SIZE = 24  # size of a TF_TString in bytes
Pointer = ctypes.c_void_p


class Output(ctypes.Structure):
    _fields_ = [("operation", Pointer), ("index", ctypes.c_int)]


class Library:
    """Call functions of the C library and check their status."""

    def __init__(self, packages):
        folder = f"{packages}/tensorflow"
        ctypes.CDLL(f"{folder}/libtensorflow_framework.so.2", ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(f"{folder}/libtensorflow_cc.so.2", ctypes.RTLD_GLOBAL)
        self.status = self.call("TF_NewStatus")

    def call(self, name, *arguments, returns=Pointer):
        function = getattr(self.library, name)
        function.restype = returns
        return function(*arguments)

    def checked(self, name, *arguments):
        result = self.call(name, *arguments, Pointer(self.status))
        if self.call("TF_GetCode", Pointer(self.status), returns=ctypes.c_int):
            message = self.call("TF_Message", Pointer(self.status), returns=ctypes.c_char_p)
            raise RuntimeError(f"{name}: {message.decode('utf-8', 'replace')}")
        return result

    def load(self, path):
        graph = self.call("TF_NewGraph")
        tags = (ctypes.c_char_p * 1)(b"serve")
        session = self.checked(
            "TF_LoadSessionFromSavedModel",
            Pointer(self.call("TF_NewSessionOptions")),
            None,
            path.encode(),
            tags,
            1,
            Pointer(graph),
            None,
        )
        return graph, session

    def output(self, graph, name, index):
        operation = self.call("TF_GraphOperationByName", Pointer(graph), name.encode())
        if not operation:
            raise RuntimeError(f"no operation {name}")
        return Output(operation, index)

    def tensor(self, dtype, shape, values):
        code, letter = DTYPES[dtype]
        size = STRING_SIZE if letter is None else struct.calcsize(letter)
        sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        count = math.prod(shape)
        tensor = self.call(
            "TF_AllocateTensor", code, sizes, len(shape), ctypes.c_size_t(size * count)
        )
        data = self.call("TF_TensorData", Pointer(tensor))
        if letter is not None:
            packed = struct.pack(f"{count}{letter}", *values)
            ctypes.memmove(data, packed, len(packed))
        for i, value in enumerate(values if letter is None else ()):
            address, text = Pointer(data + STRING_SIZE * i), value.encode()
            self.call("TF_StringInit", address, returns=None)
            self.call("TF_StringCopy", address, text, ctypes.c_size_t(len(text)), returns=None)
        return tensor

    def values(self, tensor):
        tensor = Pointer(tensor)
        code = self.call("TF_TensorType", tensor, returns=ctypes.c_int)
        letter = next(letter for dtype_code, letter in DTYPES.values() if dtype_code == code)
        count = self.call("TF_TensorElementCount", tensor, returns=ctypes.c_int64)
        data = self.call("TF_TensorData", tensor)
        if letter is not None:
            size = struct.calcsize(letter) * count
            return list(struct.unpack(f"{count}{letter}", ctypes.string_at(data, size)))
        texts = []
        for i in range(count):
            address = Pointer(data + STRING_SIZE * i)
            begin = self.call("TF_StringGetDataPointer", address)
            size = self.call("TF_StringGetSize", address, returns=ctypes.c_size_t)
            texts.append(ctypes.string_at(begin, size).decode("utf-8", "replace"))
        return texts


def main(packages, path):
    request = json.load(sys.stdin)
    library = Library(packages)
    if request["text_ops"]:
        for name in sorted(glob.glob(f"{packages}/tensorflow_text/python/ops/*.so")):
            library.checked("TF_LoadLibrary", name.encode())
    graph, session = library.load(path)
    sources = [library.output(graph, *row[:2]) for row in request["inputs"]]
    tensors = [library.tensor(*row[2:]) for row in request["inputs"]]
    outputs = [library.output(graph, *row[1:]) for row in request["outputs"]]
    results = (Pointer * len(outputs))()
    library.checked(
        "TF_SessionRun",
        Pointer(session),
        None,
        (Output * len(sources))(*sources),
        (Pointer * len(tensors))(*tensors),
        len(sources),
        (Output * len(outputs))(*outputs),
        results,
        len(outputs),
        None,
        0,
        None,
    )
    assert not {"tensorflow", "tensorflow_text", "keras"} & set(sys.modules)
    names = [row[0] for row in request["outputs"]]
    json.dump({n: library.values(t) for n, t in zip(names, results, strict=True)}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
