"""Shrink the models of recipe tests."""

import importlib

import pytest


@pytest.fixture(scope="module")
def one_layer(run_folder):
    """Give the presets of `--smoke` one layer in a module.

    `run_folder`, which other modules use too, is made before.
    """
    table = importlib.import_module("keras_llm.models.presets")._PRESETS
    with pytest.MonkeyPatch.context() as patch:
        for name in ("llama-tiny", "encoder-tiny", "seq2seq-tiny"):
            row = {**table[name].to_dict(), "num_layers": 1}
            if "num_decoder_layers" in row:
                row["num_decoder_layers"] = 1
            patch.setitem(table, name, type(table[name]).from_dict(row))
        yield
