"""Prefill and decode of a file, one text at a time."""

import numpy as np

_MASKED = -1e9


class DecoderSteps:
    """A decoder's signatures over the key-value cache that the runtime holds.

    Args:
        runtime: from `open_runtime`.
        manifest: dict with `prefill_lengths`, `decode_lengths` and `cache_slots`; of an
            encoder-decoder also `encoder_length` and `pad_id`.
    """

    def __init__(self, runtime, manifest):
        self.runtime = runtime
        self._lengths = sorted(manifest["prefill_lengths"])
        self._decode_lengths = sorted(manifest["decode_lengths"])
        self._manifest = manifest
        self._slots = np.arange(manifest["cache_slots"])

    def encode(self, token_ids):
        """Read the encoder's side, of an encoder-decoder."""
        tokens = np.full((1, self._manifest["encoder_length"]), self._manifest["pad_id"], "int32")
        tokens[0, : len(token_ids)] = token_ids
        self.runtime.run("encode", {"encoder_tokens": tokens})

    def read(self, token_ids):
        """Put tokens into the cache from slot 0 on, in chunks of the lengths that the file has, the
        smallest that holds what is left. What the cache held before is never attended to."""
        begin = 0
        while begin < len(token_ids):
            left = len(token_ids) - begin
            length = next((n for n in self._lengths if n >= left), self._lengths[-1])
            chunk = token_ids[begin : begin + length]
            self.prefill(chunk, begin, length)
            begin += len(chunk)

    def prefill(self, token_ids, begin, length):
        """Put a chunk into the cache from slot `begin` on, with the graph for `length` tokens."""
        self.runtime.run(f"prefill_{length}", self._inputs(token_ids, begin, length))

    def step(self, token, position):
        """Put one token into the cache; float32 logits (V,) of what follows."""
        length = next((n for n in self._decode_lengths if n > position), None)
        name = "decode" if length is None else f"decode_{length}"
        inputs = self._inputs([token], position, 1, length)
        return self.runtime.run(name, inputs)["logits"].reshape(-1)

    def _inputs(self, token_ids, begin, length, attended=None):
        """A chunk at position `begin`, padded to `length`; `attended` slots are looked at."""
        tokens = np.zeros((1, length), "int32")
        tokens[0, : len(token_ids)] = token_ids
        positions = np.arange(begin, begin + length, dtype="int32")
        mask = np.where(self._slots[:attended] <= positions[:, None], 0.0, _MASKED).astype(
            "float32"
        )
        return {"tokens": tokens, "input_pos": positions, "mask": mask[None, None]}
