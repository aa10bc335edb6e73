"""A smaller model for recipes that are run for what they do, not for how well they learn."""

import importlib

import pytest

import keras_llm


@pytest.fixture(scope="module")
def one_layer(run_folder):
    """The presets of `--smoke` have one layer in a module that uses this; `run_folder`, which
    other modules use too, is made before."""
    table = importlib.import_module("keras_llm.models.presets")._PRESETS
    with pytest.MonkeyPatch.context() as patch:
        for name in ("llama-tiny", "encoder-tiny", "seq2seq-tiny"):
            row = {**table[name].to_dict(), "num_layers": 1}
            if "num_decoder_layers" in row:
                row["num_decoder_layers"] = 1
            patch.setitem(table, name, type(table[name]).from_dict(row))
        yield


@pytest.fixture
def loaded_once(monkeypatch):
    """Each folder is loaded once in a test that uses this: what was traced for one call of a
    command serves the next, too."""
    tasks, load = {}, keras_llm.load

    def known(folder):
        key = str(folder)
        if key not in tasks:
            tasks[key] = load(folder)
        return tasks[key]

    monkeypatch.setattr(keras_llm, "load", known)
