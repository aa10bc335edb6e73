"""Run an exported TFLite file with ai-edge-litert and its tokenizer: no TensorFlow, no Keras."""

import json
import numbers
import pathlib
import tempfile
import zipfile

import numpy as np

from keras_llm import tokenizers
from keras_llm.errors import InputError

MANIFEST = "keras_llm.json"
TOKENIZER = "tokenizer"
_MASKED = -1e9


class LiteRTModel:
    """A causal language model from `export.litert`, run as a phone runs it.

    Args:
        path: str or path of the `.tflite` file. The tokenizer is inside: a zip archive behind
            the model's own bytes, as in TFLite metadata.
        num_threads: int or None. Threads of the interpreter; None lets it choose.

    Raises:
        InputError: if the file is missing, or was not written by `export.litert`.
    """

    def __init__(self, path, num_threads=None):
        from ai_edge_litert.interpreter import Interpreter

        path = pathlib.Path(path)
        if not path.is_file():
            raise InputError(f"{path} does not exist.")
        try:
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
                manifest = json.loads(archive.read(MANIFEST))
                archive.extractall(folder)
                self.tokenizer = tokenizers.load(pathlib.Path(folder) / TOKENIZER)
            self._interpreter = Interpreter(model_path=str(path), num_threads=num_threads)
        except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is not a model from export.litert: {error}") from None
        self.max_length = manifest["max_length"]
        self.cache_length = manifest["cache_length"]
        self._decode = self._interpreter.get_signature_runner("decode")
        self._prefill = {
            length: self._interpreter.get_signature_runner(f"prefill_{length}")
            for length in sorted(manifest["prefill_lengths"])
        }

    def signatures(self):
        """Signature name -> its inputs and outputs by name, as "dtype[shape]"."""

        def rows(details):
            return {
                name: f"{np.dtype(d['dtype']).name}{[int(n) for n in d['shape']]}"
                for name, d in sorted(details.items())
            }

        runners = {"decode": self._decode}
        runners |= {f"prefill_{length}": runner for length, runner in self._prefill.items()}
        return {
            name: {
                "inputs": rows(runner.get_input_details()),
                "outputs": rows(runner.get_output_details()),
            }
            for name, runner in runners.items()
        }

    def generate(self, prompt, max_new_tokens=64):
        """Continue a text with the most likely tokens.

        Args:
            prompt: str, not empty.
            max_new_tokens: int > 0.

        Returns:
            The new text, a str.

        Raises:
            InputError: if an argument is wrong or the prompt does not fit the model.
        """
        return self.tokenizer.decode(
            [token for token, _ in self.steps(prompt, max_new_tokens) if token is not None]
        )

    def stream(self, prompt, max_new_tokens=64):
        """The same text as `generate`, piece by piece; a piece never ends inside a character."""
        steps = self.steps(prompt, max_new_tokens)
        return self.tokenizer.decode_stream(token for token, _ in steps if token is not None)

    def steps(self, prompt, max_new_tokens):
        """Yield `(token, logits)` for each step: an int, None for the end of the text; and the
        float32 logits (V,) it was chosen from."""
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"`prompt` must be a non-empty str, got {prompt!r}.")
        if not isinstance(max_new_tokens, numbers.Integral) or max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` must be a positive int, got {max_new_tokens!r}.")
        token_ids = self.tokenizer.encode_prompt(prompt)
        if len(token_ids) >= self.max_length:
            raise InputError(
                f"`prompt` has {len(token_ids)} tokens with the begin token; the model takes at "
                f"most {self.max_length - 1}."
            )
        cache = self._read(token_ids[:-1])
        token = token_ids[-1]
        end = min(self.max_length, len(token_ids) + max_new_tokens)
        for position in range(len(token_ids) - 1, end - 1):
            outputs = self._decode(**self._inputs([token], position, 1), **cache)
            logits = outputs.pop("logits").reshape(-1)
            cache = outputs
            token = int(np.argmax(logits[: self.tokenizer.vocabulary_size]))
            if token == self.tokenizer.eos_id:
                yield None, logits
                return
            yield token, logits

    def _read(self, token_ids):
        """Prefill in chunks of the lengths the file has, the smallest that holds what is left."""
        cache = {
            name: np.zeros(details["shape"], details["dtype"])
            for name, details in self._decode.get_input_details().items()
            if name.startswith("kv_cache_")
        }
        begin = 0
        while begin < len(token_ids):
            left = len(token_ids) - begin
            length = next((n for n in self._prefill if n >= left), max(self._prefill))
            chunk = token_ids[begin : begin + length]
            cache = self._prefill[length](**self._inputs(chunk, begin, length), **cache)
            begin += len(chunk)
        return cache

    def _inputs(self, token_ids, begin, length):
        """A chunk at position `begin`, padded to `length`."""
        tokens = np.zeros((1, length), "int32")
        tokens[0, : len(token_ids)] = token_ids
        positions = np.arange(begin, begin + length, dtype="int32")
        slots = np.arange(self.cache_length)
        mask = np.where(slots <= positions[:, None], 0.0, _MASKED).astype("float32")
        return {"tokens": tokens, "input_pos": positions, "mask": mask[None, None]}
