"""Proof of an export: run what was written in a fresh process and compare it with the model.

The child process is `server_parity` for SavedModels, `device_parity` for TFLite files. It sees only
the artefact, never the Keras model.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from keras_llm.errors import ExportError

NEW_TOKENS = 24
TIMED_TOKENS = 64
_CHILDREN = {
    "saved_model": "keras_llm.export.server_parity",
    "litert": "keras_llm.export.device_parity",
    "litert_lm": "keras_llm.export.litert_lm_parity",
}
SEED_TEXTS = ["The", "I", "In 1984", "def ", "Why?", "\n", "é", "a b"]


def probe_prompts(task):
    """Prompts of many lengths in the manner of the model: its own samples."""
    longest = max(1, task.model.config.max_length - NEW_TOKENS - 8)
    lengths = [
        min(longest - len(text.encode()), 4 + 6 * index) for index, text in enumerate(SEED_TEXTS)
    ]
    prompts = [text for text, length in zip(SEED_TEXTS, lengths, strict=True) if length <= 0]
    grown = [(text, length) for text, length in zip(SEED_TEXTS, lengths, strict=True) if length > 0]
    if grown:  # all at once, which compiles once, and then cut to their lengths
        samples = task(
            [text for text, _ in grown],
            max_new_tokens=max(lengths),
            seed=list(range(len(grown))),
            return_details=True,
        )
        for (text, length), sample in zip(grown, samples, strict=True):
            prompts.append(text + task.tokenizer.decode(sample.token_ids[:length]))
    room = task.model.config.max_length - 1
    prompts = [text for text in prompts if len(task.tokenizer.encode(text)) < room]
    if not prompts:
        raise ExportError(f"a model with `max_length` {room + 1} has no room to be tried.")
    return prompts


def run_child(kind, path, request, timeout=600):
    """Run an artefact in a fresh process.

    Args:
        kind: "saved_model" or "litert".
        path: the artefact.
        request: dict of JSON values for the child.
        timeout: seconds.

    Returns:
        The child's answer, a dict of JSON values and arrays.

    Raises:
        ExportError: with the child's last words, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "request.json").write_text(json.dumps(request), "utf-8")
        run_module(_CHILDREN[kind], [str(path), str(folder)], timeout)
        answer = json.loads((folder / "answer.json").read_text("utf-8"))
        arrays = folder / "arrays.npz"
        if arrays.is_file():
            with np.load(arrays) as loaded:
                answer |= {name: loaded[name] for name in loaded.files}
        return answer


def run_module(module, arguments, timeout):
    """Run a Python module in a fresh process; ExportError with its last words if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"{module} gave no answer within {timeout} s.") from None
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()][-8:]
        raise ExportError(f"{module} ended with {done.returncode}: " + "\n".join(words))


def require_same(name, found, expected, tolerance):
    """The largest absolute difference of two arrays; ExportError if above the tolerance."""
    error = float(np.max(np.abs(np.asarray(found) - np.asarray(expected)), initial=0.0))
    if not error <= tolerance:
        raise ExportError(
            f"{name} of the exported model differ from Keras by {error:.3g}, more than "
            f"{tolerance:.3g}; nothing was written."
        )
    return error


def require_same_texts(found, expected):
    """ExportError naming the first greedy text that differs."""
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            raise ExportError(
                f"greedy text {index} of the exported model is {ours!r}, Keras gives {theirs!r}; "
                "nothing was written."
            )


def greedy(serve, prompts, max_new_tokens):
    """Call a SavedModel's `serving_default` signature for greedy text; its outputs."""
    import tensorflow as tf

    return serve(
        prompt=tf.constant(prompts),
        max_new_tokens=tf.constant([max_new_tokens]),
        temperature=tf.constant([0.0]),
        top_k=tf.constant([0]),
        top_p=tf.constant([1.0]),
        seed=tf.constant([0]),
    )


def answer(run, path, folder):
    """The child's side of `run_child`: `run(path, request)` gives a dict of JSON values and a dict
    of arrays."""
    folder = pathlib.Path(folder)
    request = json.loads((folder / "request.json").read_text("utf-8"))
    values, arrays = run(path, request)
    if arrays:
        np.savez(folder / "arrays.npz", **arrays)
    (folder / "answer.json").write_text(json.dumps(values), "utf-8")
