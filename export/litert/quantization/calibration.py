"""Record the activations of a decoder on calibration texts, for SmoothQuant, GPTQ and ranges.

TensorFlow runs a prefill graph that is traced like the exported ones, with the weights of the Keras
model and without a copy of them.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_llm.export.litert.decoder_graphs import decoder_step, encoder
from keras_llm.export.litert.lowering.trace import Trace
from keras_llm.export.litert.quantization import gptq
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.export.litert.lowering.flatbuffer import Constant, Model
    from keras_llm.tasks import Task

_TOKENS = 4096  # maximum number of tokens for GPTQ
_MEMORY = 1 << 30  # maximum bytes of second moments in memory
_TEXTS = 16  # maximum number of texts for the ranges of activations


def groups_of(model: "Model") -> "list[list[Constant]]":
    """Group the weights that multiply the same tensor.

    Args:
        model: a `flatbuffer.Model`.

    Returns:
        A list of lists of `flatbuffer.Constant`s, the unions of the groups of all signatures. A
        weight that multiplies several tensors, or is also an embedding table, is in a group of one.
    """
    together: dict[Constant, set[Constant]] = {}
    alone: set[Constant] = set()
    for graph in model.graphs:
        sources: dict[int, list[Constant]] = {}
        readers: dict[Constant, set[int]] = {}
        for product in (p for p in model.products if p.graph is graph):
            if product.is_lookup:
                alone.add(product.constant)
            else:
                source = int(product.operator.inputs[0])
                sources.setdefault(source, []).append(product.constant)
                readers.setdefault(product.constant, set()).add(source)
        alone.update(constant for constant, inputs in readers.items() if len(inputs) > 1)
        for constants in sources.values():
            group = set(constants)
            for constant in constants:
                group |= together.get(constant, set())
            for constant in group:
                together[constant] = group
    groups, seen = [], set()
    for constant, group in together.items():
        if constant not in seen:
            seen |= group
            order = [c for c in together if c in group]
            shared = [c for c in order if c not in alone]
            groups += [shared] if shared else []
            groups += [[c] for c in order if c in alone]
    return groups


class Calibration:
    """Calibration texts and the graphs that record activations on them.

    Args:
        task: a task to trace, in float32 (see `lowering.trace.in_float32`).
        weights: its weights, as in `lowering.trace.Trace`.
        manifest: dict, as stored in the file.
        rows: lists of token ids; for an encoder-decoder, of source tokens.
    """

    def __init__(
        self,
        task: "Task",
        weights: list[tuple[Any, Any]],
        manifest: JSON,
        rows: Sequence[Sequence[int]],
    ) -> None:
        self._model, self._weights = task.model, weights
        self._manifest, self.rows = manifest, rows
        self.length = max(manifest["prefill_lengths"])

    def activations(
        self, groups: "Sequence[Sequence[Constant]]", rows: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Record the inputs of the matmuls with some weights.

        Args:
            groups: lists of `flatbuffer.Constant`s from `groups_of`.
            rows: lists of token ids.

        Yields:
            Pairs of an index into `groups` and float32 (tokens, channels).
        """
        index = {c.view.expression.key: i for i, group in enumerate(groups) for c in group}
        runs = {
            name: (Trace(*step, self._weights).products(set(index)), step[1])
            for name, step in self._steps().items()
        }

        def read(name, inputs, tokens):
            run, specs = runs[name]
            outputs, activations = run({n: inputs[n] for n in specs})
            done = set()
            for key, values in activations.items():
                if index[key] not in done:  # the members of a group have the same input
                    done.add(index[key])
                    yield index[key], values.reshape(-1, values.shape[-1])[:tokens]
            return outputs

        for row in rows:
            state = {}
            if "encode" in runs:
                length = self._manifest["encoder_length"]
                tokens = np.full((1, length), self._manifest["pad_id"], "int32")
                row = row[:length]
                tokens[0, : len(row)] = row
                state = yield from read("encode", {"encoder_tokens": tokens}, len(row))
                row = [self._manifest["start_id"]]
            state |= {
                name: np.zeros(spec.shape, "float32")
                for name, spec in runs["prefill"][1].items()
                if name.startswith("kv_cache_")
            }
            row = row[: self._manifest["max_length"]]
            for begin in range(0, len(row), self.length):
                chunk = row[begin : begin + self.length]
                inputs = {**state, **self._inputs(chunk, begin)}
                outputs = yield from read("prefill", inputs, len(chunk))
                state |= {name: v for name, v in outputs.items() if name in state}

    def _steps(self):
        """Return a dict from name to function and inputs of the graphs to run."""
        manifest, model = self._manifest, self._model
        length = manifest.get("encoder_length")
        step = decoder_step(model, manifest["cache_slots"], self.length, True, None, length)
        return (
            {"prefill": step}
            if length is None
            else {
                "encode": encoder(model, length),
                "prefill": step,
            }
        )

    def _inputs(self, chunk, begin):
        tokens = np.zeros((1, self.length), "int32")
        tokens[0, : len(chunk)] = chunk
        positions = np.arange(begin, begin + self.length, dtype="int32")
        slots = np.arange(self._manifest["cache_slots"])
        mask = np.where(slots <= positions[:, None], 0.0, -1e9).astype("float32")
        return {"tokens": tokens, "input_pos": positions, "mask": mask[None, None]}

    def tokens(self) -> int:
        """Return the number of tokens for GPTQ."""
        return sum(map(len, self._first(_TOKENS)))

    def round_later_columns(self, groups: "Sequence[Sequence[Constant]]") -> None:
        """Set the GPTQ factor of the matrices of some groups.

        Factors are computed on first use, for as many groups at a time as fit in memory. Matrices
        with more input channels than there are tokens keep plain rounding.
        """
        groups = [g for g in groups if g[0].view.shape[1] <= self.tokens()]
        moments = _Moments(self, groups, self._first(_TOKENS))
        for i, group in enumerate(groups):
            for constant in group:
                constant.factor = lambda i=i: moments.factor(i)

    def ranges(
        self, groups: "Sequence[Sequence[Constant]]", biases: "dict[Constant, np.ndarray]"
    ) -> dict[Any, list[tuple[float, float]]]:
        """Return the ranges of the inputs and outputs of matmuls.

        Args:
            groups: as in `activations`.
            biases: dict from a constant to the array that is added to its product, or None.

        Returns:
            A dict from the key of a constant to the (min, max) of the input and of the output.
        """
        result: dict[Any, list[tuple[float, float]]] = {}

        def widen(key, side, values):
            pair = result.setdefault(key, [(0.0, 0.0), (0.0, 0.0)])
            least, largest = pair[side]
            pair[side] = min(least, float(values.min())), max(largest, float(values.max()))

        for i, x in self.activations(groups, self.rows[:_TEXTS]):
            if groups[i][0].divisor is not None:
                x = x * groups[i][0].divisor
            for constant in groups[i]:
                matrix = np.asarray(constant.view.array(), "float32")
                if constant.divisor is not None:
                    matrix = matrix / constant.divisor
                y = x @ matrix.T
                bias = biases.get(constant)
                widen(constant.view.key, 0, x)
                widen(constant.view.key, 1, y if bias is None else y + bias)
        return result

    def _first(self, tokens):
        """Return the first rows, truncated to `tokens` tokens in total."""
        rows = []
        for row in self.rows:
            rows.append(row[: tokens - sum(map(len, rows))])
        return [row for row in rows if row]


class _Moments:
    """The second moments of the inputs of groups of matrices, computed in parts."""

    def __init__(
        self,
        calibration: Calibration,
        groups: "Sequence[Sequence[Constant]]",
        rows: Sequence[Sequence[int]],
    ) -> None:
        self._calibration, self._groups, self._rows = calibration, groups, rows
        self._moments: dict[int, Any] = {}
        self._factor: tuple[Any, Any] = (None, None)

    def factor(self, index: int) -> np.ndarray:
        """Return the GPTQ factor of the matrices of a group (see `gptq`)."""
        if self._factor[0] != index:
            if index not in self._moments:
                self._read(index)
            self._factor = index, gptq.factor_of(self._moments.pop(index))
        return self._factor[1]

    def _read(self, first):
        """Compute the moments of as many groups, from `first` on, as fit in memory."""
        indices, used = [], 0
        for index in range(first, len(self._groups)):
            size = 4 * self._groups[index][0].view.shape[1] ** 2
            if indices and used + size > _MEMORY:
                break
            indices.append(index)
            used += size
        self._moments = {}
        groups = [self._groups[index] for index in indices]
        for i, x in self._calibration.activations(groups, self._rows):
            self._moments[indices[i]] = self._moments.get(indices[i], 0.0) + x.T @ x
        for index in indices:
            divisor = self._groups[index][0].divisor
            if divisor is not None:
                self._moments[index] = self._moments[index] * np.outer(divisor, divisor)
