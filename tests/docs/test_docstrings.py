"""Run the examples in docstrings: `make docs`."""

import doctest
import importlib
import pkgutil

import pytest


def modules():
    yield "keras_llm"
    for package in ("keras_llm", "keras_llm.export", "keras_llm.recipes"):
        for info in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
            # A backend's file imports the backend; only TensorFlow is always installed.
            if not info.name.endswith(("__main__", ".jax")):
                yield info.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_examples_in_docstrings_run(name):
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0
