"""Tests against other implementations, in an environment that has them: `make test-parity`."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

# What the tests found, by the section of the page.
FOUND = {}


def pytest_addoption(parser):
    parser.addoption("--page", help="write what was found as Markdown to this file")


@pytest.fixture
def record():
    """A function that notes one row of a section of the page: `record(section, *cells)`."""

    def noting(section, *cells):
        FOUND.setdefault(section, []).append(cells)

    return noting


def pytest_sessionfinish(session, exitstatus):
    page = session.config.getoption("--page")
    if page and exitstatus == 0:
        pathlib.Path(page).write_text(_page(), "utf-8")


def _page():
    import llama_cpp
    import tensorflow
    import torch
    import transformers

    versions = (
        f"transformers {transformers.__version__} on torch {torch.__version__.split('+')[0]}, "
        f"llama-cpp-python {llama_cpp.__version__}, TensorFlow {tensorflow.__version__}"
    )
    parts = [f"{_INTRODUCTION}\nMeasured with {versions}, all in float32 on a CPU.\n"]
    for section, (text, head) in SECTIONS.items():
        rows = [head, ["---"] * len(head), *FOUND[section]]
        table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
        parts.append(f"## {section}\n{text}\n\n{table}\n")
    return "\n".join(parts)


_INTRODUCTION = """# Parity with other implementations

Written by `make test-parity`, which makes an environment of its own with PyTorch, transformers and
llama.cpp, and fails where a number below leaves its bound.
"""
SECTIONS = {
    "Families of checkpoints": (
        "A small random model of transformers', norms and biases included, is saved, read by\n"
        "`checkpoints.load_model`, written by `checkpoints.to_hugging_face` and read by "
        "transformers\nagain. On three rows of 17, 3 and 11 tokens, the greatest difference "
        "between ours and theirs\n(the bound is 1e-4 of the greatest value).",
        ["model", "theirs, read by us", "ours, read by them", "greatest value"],
    ),
    "Greedy text": (
        "Through our key-value cache, against transformers' `generate`, on random models.",
        ["model", "new tokens", "the same"],
    ),
    "all-MiniLM-L6-v2": (
        "Embeddings of ten sentences, `checkpoints.from_hugging_face` against transformers with "
        "mean\npooling.",
        ["what", "value"],
    ),
    "SmolLM2-135M-Instruct, Q4_1": (
        "`checkpoints.from_gguf` against llama.cpp: on the same file, whose products llama.cpp "
        "computes\nwith activations in 8 bits, and on that file's weights written out in float32 "
        "(F32). Differences\nare of logits at all positions of the prompt; top 5 says how many of "
        "the five most likely next\ntokens are the same, and whether they are in the same order.",
        [
            "prompt",
            "tokens",
            "greatest difference, F32",
            "top 5, F32",
            "greedy tokens alike, F32",
            "greatest difference, Q4_1",
            "top 5, Q4_1",
            "greedy tokens alike, Q4_1",
        ],
    ),
    "SmolLM2-135M-Instruct, written for transformers": (
        "The same model through `checkpoints.to_hugging_face`, read by transformers, on the\n"
        "five chats.",
        ["what", "value"],
    ),
}
