"""Write the page docs/parity.md with the results of the parity tests: `make test-parity`."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

# Rows of the tables, by section of the page.
ROWS = {}


def pytest_addoption(parser):
    parser.addoption("--page", help="write the results as Markdown to this file")


@pytest.fixture
def record():
    """Return a function that adds a row to a section of the page: `record(section, *cells)`."""

    def add_row(section, *cells):
        ROWS.setdefault(section, []).append(cells)

    return add_row


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
        rows = [head, ["---"] * len(head), *ROWS[section]]
        table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
        parts.append(f"## {section}\n{text}\n\n{table}\n")
    return "\n".join(parts)


_INTRODUCTION = """# Parity with other implementations

Written by `make test-parity`, which creates an environment with PyTorch, transformers and \
llama.cpp, and fails if a
number below exceeds its bound.
"""
SECTIONS = {
    "Families of checkpoints": (
        "A small random transformers model, including norms and biases, is saved, read by "
        "`checkpoints.load_model`, written by\n`checkpoints.to_hugging_face` and read by "
        "transformers again. The table has the greatest difference between the two\nlibraries' "
        "outputs on three rows of 17, 3 and 11 tokens (the bound is 1e-4 of the greatest value).",
        [
            "model",
            "transformers' model, read by keras_llm",
            "keras_llm's model, read by transformers",
            "greatest value",
        ],
    ),
    "Random configs": (
        "config.json files with random legal values of every field of the family's config class, "
        "in the formats of several versions of\ntransformers. A model is compared as above, once "
        "read and once written and read back, or refused with a message that names\nthe field.",
        [
            "family",
            "configs",
            "compared outputs",
            "refused to read",
            "refused to write",
            "greatest difference",
        ],
    ),
    "Text classification": (
        "Probabilities and numbers for three texts, compared with transformers' pipeline on the "
        "written folder.",
        ["task", "greatest difference"],
    ),
    "Greedy text": (
        "With keras_llm's key-value cache, compared with transformers' `generate`, on random "
        "models.",
        ["model", "new tokens", "identical"],
    ),
    "all-MiniLM-L6-v2": (
        "Embeddings of ten sentences, `checkpoints.from_hugging_face` compared with transformers "
        "with mean pooling.",
        ["what", "value"],
    ),
    "SmolLM2-135M-Instruct, Q4_1": (
        "`checkpoints.from_gguf` compared with llama.cpp: on the same file, for which llama.cpp "
        "computes matrix products with\n8-bit activations, and on that file's weights converted "
        'to float32 (F32). Differences are of logits at all positions of\nthe prompt; "top 5" is '
        "how many of the five most likely next tokens are the same, and whether they are in the "
        "same\norder.",
        [
            "prompt",
            "tokens",
            "greatest difference, F32",
            "top 5, F32",
            "identical greedy tokens, F32",
            "greatest difference, Q4_1",
            "top 5, Q4_1",
            "identical greedy tokens, Q4_1",
        ],
    ),
    "SmolLM2-135M-Instruct, written for transformers": (
        "The same model through `checkpoints.to_hugging_face`, read by transformers, on the five "
        "chats.",
        ["what", "value"],
    ),
}
