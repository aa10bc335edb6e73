"""Write a TFLite file whose weights follow its graph, one tensor at a time.

The flatbuffer comes first and names the place of each weight in the file, so it may be of any size;
weights are computed, balanced, rounded and written one after the other, large ones a part at a
time. What is known only then, the scales, is filled into the flatbuffer at the end.

    | flatbuffer | weight | weight | ... |
"""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_llm.export.litert.quantization import gptq
from keras_llm.export.litert.quantization.rules import BiasStorage, Storage, pack_int4

_ALIGNMENT = 64  # bytes; XNNPACK reads weights where they lie
_PART = 1 << 22  # weights that are rounded at a time


def write(model, path, progress=None):
    """Write a `flatbuffer.Model`.

    Args:
        model: a `flatbuffer.Model`, whose tensors are given their buffers.
        path: where to.
        progress: function that is called with the bytes written after each tensor, or None.
    """
    # Biases of whole numbers need the scales of their matrices.
    constants = sorted(model.constants.values(), key=lambda c: isinstance(c.storage, BiasStorage))
    constants = [_Stored(model, constant) for constant in constants if constant.places]
    model.finish()
    content = model.pack()
    with open(path, "wb") as file:
        offset = file.seek(_aligned(len(content)))
        for stored in constants:
            for buffer, size in stored.sizes():
                _set_place(content, buffer, offset, size)
                stored.offsets.append(offset)
                offset = _aligned(offset + size)
        known = {}
        for stored in constants:
            stored.write(file, known)
            if progress is not None:
                progress(sum(size for _, size in stored.sizes()))
        file.truncate(max(offset, _aligned(len(content))))
        _set_scales(content, model, constants)
        file.seek(0)
        file.write(content)


class _Stored:
    """A constant on its way into the file."""

    def __init__(self, model, constant):
        self.constant, self.offsets, self.scales = constant, [], None
        self.tensors = [(graph.graph, graph.graph.tensors[i]) for graph, i in constant.places]
        self._buffers = [_new_buffer(model)]
        for _, tensor in self.tensors:
            tensor.buffer = self._buffers[0]
        if self.block is not None:
            self._buffers.append(_new_buffer(model))
            for graph, tensor in self.tensors:
                graph.tensors[tensor.quantization.details.scales].buffer = self._buffers[1]

    @property
    def block(self):
        return getattr(self.constant.storage, "block", None)

    def sizes(self):
        """The buffers and the bytes of each."""
        storage, count = self.constant.storage, int(np.prod(self.constant.view.shape))
        bits = storage.bits if isinstance(storage, Storage) else 32
        sizes = [-(-count * bits // 8)]
        if self.block is not None:
            sizes.append(2 * (count // self.block))
        return list(zip(self._buffers, sizes, strict=True))

    def write(self, file, known):
        """Write the values, and the scales of blocks; `known` has the scales of others."""
        constant, storage = self.constant, self.constant.storage
        file.seek(self.offsets[0])
        if isinstance(storage, BiasStorage):
            scales = known[storage.weights.view.key]
            values, self.scales = storage.quantize(constant.view.array(), scales)
            file.write(values)
            return
        dtype = "float16" if storage is not None and storage.bits == 16 else "float32"
        if storage is None or storage.bits == 16:
            for rows in self._parts():
                file.write(np.ascontiguousarray(rows, dtype))
            return
        scales = []
        for rows in self._parts():
            values, found = storage.quantize(np.ascontiguousarray(rows))
            file.write(pack_int4(values) if storage.bits == 4 else values)
            scales.append(found)
        scales = np.concatenate(scales)
        if self.block is None:
            self.scales = known[constant.view.key] = scales[:, 0]
        else:
            file.seek(self.offsets[1])
            file.write(scales.astype("float16"))

    def _parts(self):
        """Some rows at a time, in float32; an even number of weights in all but the last."""
        constant, array = self.constant, self.constant.view.array()
        if constant.factor is not None:
            matrix = np.asarray(array, "float32")
            if constant.divisor is not None:
                matrix = matrix / constant.divisor
            yield gptq.on_grid(matrix, constant.factor(), self.block or matrix.shape[1])
            return
        if array.ndim == 0:
            array = array.reshape(1)
        step = 2 * max(1, _PART // 2 // max(1, int(np.prod(array.shape[1:]))))
        for begin in range(0, len(array), step):
            rows = np.asarray(array[begin : begin + step], "float32")
            yield rows if constant.divisor is None else rows / constant.divisor


def _new_buffer(model):
    buffer = schema.BufferT()
    buffer.offset = buffer.size = 1  # to be replaced; 0 would be left out
    model.model.buffers.append(buffer)
    return len(model.model.buffers) - 1


def _aligned(offset):
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _set_place(content, buffer, offset, size):
    """Write into a packed flatbuffer where a buffer lies."""
    table = schema.Model.GetRootAs(content, 0).Buffers(buffer)._tab
    for field, value in ((6, offset), (8, size)):  # `offset` and `size` of the schema's Buffer
        place = table.Pos + table.Offset(field)
        flatbuffers.encode.Write(flatbuffers.packer.uint64, content, place, value)


def _set_scales(content, model, constants):
    """Write into a packed flatbuffer the scales of what was rounded."""
    packed, place = schema.Model.GetRootAs(content, 0), {}
    for i, graph in enumerate(model.model.subgraphs):
        for j, tensor in enumerate(graph.tensors):
            place[id(tensor)] = i, j
    for stored in constants:
        if stored.scales is not None:
            for _, tensor in stored.tensors:
                i, j = place[id(tensor)]
                quantization = packed.Subgraphs(i).Tensors(j).Quantization()
                quantization.ScaleAsNumpy()[:] = stored.scales
