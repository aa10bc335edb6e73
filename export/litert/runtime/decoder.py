"""Run the prefill and decode signatures of an exported decoder, with batch size 1."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.export.litert.runtime.backends import CompiledRuntime, InterpreterRuntime

_MASKED = -1e9


class DecoderSteps:
    """The signatures of a decoder and the key-value cache in the runtime.

    Args:
        runtime: from `open_runtime`.
        manifest: dict with `prefill_lengths`, `decode_lengths` and `cache_slots`; for an
            encoder-decoder also `encoder_length` and `pad_id`.
    """

    def __init__(self, runtime: "CompiledRuntime | InterpreterRuntime", manifest: JSON) -> None:
        self.runtime = runtime
        self._lengths = sorted(manifest["prefill_lengths"])
        self._decode_lengths = sorted(manifest["decode_lengths"])
        self._manifest = manifest
        self._slots = np.arange(manifest["cache_slots"])

    def encode(self, token_ids: Sequence[int]) -> None:
        """Run the encoder of an encoder-decoder on the source tokens."""
        tokens = np.full((1, self._manifest["encoder_length"]), self._manifest["pad_id"], "int32")
        tokens[0, : len(token_ids)] = token_ids
        self.runtime.run("encode", {"encoder_tokens": tokens})

    def read(self, token_ids: Sequence[int]) -> None:
        """Prefill the cache with tokens, starting at slot 0.

        Each chunk uses the smallest prefill length that fits the remaining tokens, or else the
        largest one. Previous contents of the cache are not attended to.
        """
        begin = 0
        while begin < len(token_ids):
            left = len(token_ids) - begin
            length = next((n for n in self._lengths if n >= left), self._lengths[-1])
            chunk = token_ids[begin : begin + length]
            self.prefill(chunk, begin, length)
            begin += len(chunk)

    def prefill(self, token_ids: Sequence[int], begin: int, length: int) -> None:
        """Prefill the cache with a chunk, starting at slot `begin`, with `prefill_<length>`."""
        self.runtime.run(f"prefill_{length}", self._inputs(token_ids, begin, length))

    def step(self, token: int, position: int) -> np.ndarray:
        """Add one token to the cache and return the float32 logits (V,) of the next token."""
        length = next((n for n in self._decode_lengths if n > position), None)
        name = "decode" if length is None else f"decode_{length}"
        inputs = self._inputs([token], position, 1, length)
        return self.runtime.run(name, inputs)["logits"].reshape(-1)

    def _inputs(self, token_ids, begin, length, attended=None):
        """Return the inputs for a chunk at position `begin`, padded to `length`.

        The mask covers the first `attended` slots, or all. Padding attends to nothing.
        """
        tokens = np.zeros((1, length), "int32")
        tokens[0, : len(token_ids)] = token_ids
        positions = np.arange(begin, begin + length, dtype="int32")
        mask = np.where(self._slots[:attended] <= positions[:, None], 0.0, _MASKED)
        mask = mask.astype("float32")
        mask[len(token_ids) :] = _MASKED
        return {"tokens": tokens, "input_pos": positions, "mask": mask[None, None]}
