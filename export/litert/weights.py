"""Write a TFLite file, one weight at a time, with the weights after the flatbuffer.

The flatbuffer has the offset of each weight in the file, so a file can have any size. Weights are
computed, balanced, rounded and written one after the other, large ones in parts. The scales, which
are only known then, are filled into the flatbuffer at the end.

    | flatbuffer | weight | weight | ... |
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_llm.export.litert.quantization import gptq
from keras_llm.export.litert.quantization.rounding import BiasStorage, Storage, pack_int4
from keras_llm.types import PathLike

if TYPE_CHECKING:
    from keras_llm.export.litert.lowering.flatbuffer import Constant, Model

_ALIGNMENT = 64  # bytes; XNNPACK reads weights in place
_PART = 1 << 22  # weights that are rounded at a time


def write(model: "Model", path: PathLike, progress: Callable[[int], object] | None = None) -> None:
    """Write a `flatbuffer.Model`.

    Args:
        model: a `flatbuffer.Model`. The buffers of its tensors are set.
        path: path of the file to write.
        progress: function that is called after each tensor with the bytes written, or None.
    """
    # Write integer biases last, because they need the scales of their matrices.
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
        scales: dict[Any, np.ndarray] = {}
        for stored in constants:
            stored.write(file, scales)
            if progress is not None:
                progress(sum(size for _, size in stored.sizes()))
        file.truncate(max(offset, _aligned(len(content))))
        _set_scales(content, model, constants)
        file.seek(0)
        file.write(content)


class _Stored:
    """A constant and its buffers in the file."""

    def __init__(self, model: "Model", constant: "Constant") -> None:
        self.constant = constant
        self.offsets: list[int] = []
        self.scales: np.ndarray | None = None
        self.tensors = [(graph.graph, graph.graph.tensors[i]) for graph, i in constant.places]
        self._buffers = [_new_buffer(model)]
        for _, tensor in self.tensors:
            tensor.buffer = self._buffers[0]
        if self.block is not None:
            self._buffers.append(_new_buffer(model))
            for graph, tensor in self.tensors:
                graph.tensors[tensor.quantization.details.scales].buffer = self._buffers[1]

    @property
    def block(self) -> int | None:
        return getattr(self.constant.storage, "block", None)

    def sizes(self) -> list[tuple[int, int]]:
        """Return pairs of a buffer and its bytes."""
        storage, count = self.constant.storage, int(np.prod(self.constant.view.shape))
        bits = storage.bits if isinstance(storage, Storage) else 32
        sizes = [-(-count * bits // 8)]
        if self.block is not None:
            sizes.append(2 * (count // self.block))
        return list(zip(self._buffers, sizes, strict=True))

    def write(self, file: BinaryIO, written_scales: dict[Any, np.ndarray]) -> None:
        """Write the values and the scales of blocks.

        Args:
            file: the open file.
            written_scales: dict from the key of a view to the scales of a written matrix. Scales
                of channels are added to it.
        """
        constant, storage = self.constant, self.constant.storage
        file.seek(self.offsets[0])
        if isinstance(storage, BiasStorage):
            scales = written_scales[storage.weights.view.key]
            values, self.scales = storage.quantize(constant.view.array(), scales)
            file.write(values)
            return
        dtype = "float16" if storage is not None and storage.bits == 16 else "float32"
        if storage is None or storage.bits == 16:
            for rows in self._parts():
                file.write(np.ascontiguousarray(rows, dtype).data)
            return
        parts = []
        for rows in self._parts():
            values, row_scales = storage.quantize(np.ascontiguousarray(rows))
            file.write(pack_int4(values) if storage.bits == 4 else values)
            parts.append(row_scales)
        scales = np.concatenate(parts)
        if self.block is None:
            self.scales = written_scales[constant.view.key] = scales[:, 0]
        else:
            file.seek(self.offsets[1])
            file.write(scales.astype("float16").data)

    def _parts(self):
        """Iterate over float32 rows in parts; all but the last have an even number of weights."""
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


def _new_buffer(model: "Model") -> int:
    buffer = schema.BufferT()
    buffer.offset = buffer.size = 1  # placeholders; the flatbuffer would omit 0
    model.model.buffers.append(buffer)
    return len(model.model.buffers) - 1


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _set_place(content, buffer, offset, size):
    """Set the offset and size of a buffer in a packed flatbuffer."""
    table = schema.Model.GetRootAs(content, 0).Buffers(buffer)._tab
    for field, value in ((6, offset), (8, size)):  # `offset` and `size` of the schema's Buffer
        place = table.Pos + table.Offset(field)
        flatbuffers.encode.Write(flatbuffers.packer.uint64, content, place, value)


def _set_scales(content, model, constants):
    """Set the scales of the quantized tensors in a packed flatbuffer."""
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
