"""What `keras_llm.export` says where an optional package is missing."""

import sys

import pytest

from keras_llm import export
from keras_llm.errors import InputError
from keras_llm.export.serving import server

SERVER = "keras_llm.export.serving.server."


@pytest.fixture
def without_grpc(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(SERVER):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)


def test_names_with_missing_packages_can_be_imported(without_grpc):
    for module in (export, server):
        assert hasattr(module, "LocalServer") and "LocalServer" in module.__all__
        assert isinstance(module.LocalServer, type) and module.LocalServer.__name__ == "LocalServer"
    assert not hasattr(export, "nonsense")


def test_calling_it_names_the_extra(without_grpc):
    from keras_llm.export import LocalServer

    for _ in range(2):
        with pytest.raises(InputError, match=r"LocalServer needs the package grpc: .*\[serving\]"):
            LocalServer(None, port=1)
