"""A hub on loopback, and processes that use it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import hub_server


@pytest.fixture
def server(tmp_path):
    """A hub with the repository me/tiny, some of whose files are not needed."""
    repository = tmp_path / "hub" / "me" / "tiny"
    (repository / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "onnx/config.json", "README.md"):
        (repository / name).write_text(json.dumps({"model_type": "llama"}), "utf-8")
    weights = {"w": np.arange(200_000, dtype="float32")}
    safetensors.numpy.save_file(weights, repository / "model.safetensors")
    (repository / "pytorch_model.bin").write_bytes(b"pickle")
    (repository / "quantized").mkdir()
    (repository / "quantized" / "tiny-q8.gguf").write_bytes(b"GGUF" * 50_000)
    with hub_server.serving(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def run(server, tmp_path):
    """Function that runs Python with arguments, which asks that hub, and returns the process."""

    def start(*arguments, environment=()):
        inherited = dict(os.environ)
        for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            inherited.pop(variable, None)
        inherited |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        inherited |= {"NO_PROXY": "*", **dict(environment)}
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=inherited
        )

    return start
