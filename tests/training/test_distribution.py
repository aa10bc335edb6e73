"""Test the options of distributed training; tests/scale compares it with one device."""

import importlib
import pathlib
import re
import runpy

import pytest

from keras_llm import training
from keras_llm.commands import entry_points
from keras_llm.errors import InputError

CASES = runpy.run_path(str(pathlib.Path(__file__).with_name("distributed_cases.py")))


def test_unsupported_options_on_two_replicas_raise_error(tmp_path):
    codes, stderr = CASES["run"](("unsupported", tmp_path, 0))
    assert codes == [[0]], stderr
    errors = CASES["load_outcome"](tmp_path, "unsupported")
    assert errors.pop("none") is None
    patterns = {
        "clipping": "global_clipnorm.*SGD.*each of 2 replicas",
        "accumulation": "gradient_accumulation_steps.*SGD",
        "float16": "mixed_float16.*strategy has 2",
        "jit_compile": "jit_compile.*strategy has 2",
        "steps_per_execution": "steps_per_execution.*strategy has 2",
        "length": "steps_per_epoch",
        "losses": "add_loss.*strategy has 2",
        "sum": "reduction 'sum'.*several replicas",
        "others": "ContrastiveLoss supports only one replica.*has 2",
    }
    assert errors.keys() == patterns.keys()
    for name, pattern in patterns.items():
        assert re.search(pattern, errors[name] or ""), (name, errors[name])


def test_recipes_accept_all_distributions():
    for name in entry_points.recipes():
        options = entry_points.recipe(name).Options
        required = {
            "finetune": {"start": "m", "data": "rows.jsonl"},
            "preference_tuning": {"start": "m"},
            "word_vectors": {"objective": "cbow"},
        }.get(name, {})
        for kind in ("mirrored", "multi_worker", "jax_data", "jax_model"):
            options(out="m", distribution=kind, **required)
        with pytest.raises(InputError, match="--distribution must be one of mirrored, multi_"):
            options(out="m", distribution="parameter_server", **required)
        with pytest.raises(InputError, match=r"--export must be (left out|empty)"):
            options(out="m", distribution="mirrored", export="litert", **required)


def test_skip_gram_on_jax_raises_error():
    word_vectors = importlib.import_module("keras_llm.recipes.word_vectors").Options
    word_vectors(out="m", distribution="mirrored")
    for kind in ("jax_data", "jax_model"):
        with pytest.raises(InputError, match="--distribution must be mirrored or multi_worker"):
            word_vectors(out="m", distribution=kind)


def test_unavailable_distributions_raise_error(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for kind, message in (
        ("mirrored", "at least two devices"),
        ("multi_worker", "TF_CONFIG"),
        ("jax_data", "KERAS_BACKEND=jax"),
        ("jax_model", "KERAS_BACKEND=jax"),
        ("parameter_server", "kind.*mirrored"),
    ):
        with pytest.raises(InputError, match=message):
            training.set_distribution(kind)
    with pytest.raises(InputError, match="KERAS_BACKEND=jax"):
        training.TensorParallel()
