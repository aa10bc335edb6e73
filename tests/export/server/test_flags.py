"""Test the flags of the local server and of `keras-llm serve`."""

import logging
import pathlib
import re
import runpy
import sys
import types

import pytest

from keras_llm import cli, export
from keras_llm.errors import InputError

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "model_base_path"),
        ({"model_base_path": "nowhere"}, "nowhere has no version folder"),
        ({"model_base_path": "BASE", "model_config_file": "FILE"}, "either"),
        ({"model_config_file": "nowhere"}, "nowhere does not exist"),
        ({"model_config_file": "FILE"}, "FILE: 1:1 .*nonsense"),
        ({"model_base_path": "BASE", "batching_parameters_file": "FILE"}, "enable_batching"),
        (
            {
                "model_base_path": "BASE",
                "batching_parameters_file": "FILE",
                "enable_batching": True,
            },
            "FILE: 1:1",
        ),
        ({"model_base_path": "BASE", "ssl_config_file": "FILE"}, "FILE: 1:1"),
        ({"model_base_path": "BASE", "rest_api_num_threads": 0}, "rest_api_num_threads"),
        ({"model_base_path": "BASE", "port": 99999}, "port"),
        ({"model_base_path": "BASE", "port": 5000, "rest_api_port": 5000}, "rest_api_port"),
        ({"model_base_path": "BASE", "host": "256.0.0.1"}, "`host`"),
        ({"model_base_path": "BASE", "reload_base_paths": "/models"}, "`reload_base_paths`"),
        ({"model_base_path": "BASE", "host": "192.0.2.1"}, "`port`: .* not of this machine"),
    ],
)
def test_invalid_flags_raise(tiny_base, tmp_path, serve, options, words):
    (tmp_path / "FILE").write_text("nonsense: 1")
    places = {"BASE": str(tiny_base), "FILE": str(tmp_path / "FILE")}
    options = {name: places.get(value, value) for name, value in options.items()}
    with pytest.raises(InputError, match=words):
        serve(**options)


def test_port_in_use_raises(tiny_base, serve, server):
    with pytest.raises(InputError, match=r"`port`: .* in use"):
        serve(tiny_base, port=server.port)
    with pytest.raises(InputError, match=r"`rest_api_port`: .*:\d+ \(Address already in use\)\.$"):
        serve(tiny_base, rest_api_port=server.rest_api_port)


def test_batching_parameters_file(tiny_base, tmp_path, serve):
    path = tmp_path / "batching_parameters.txt"
    path.write_text(
        "max_batch_size { value: 4 } batch_timeout_micros { value: 100000 }\n"
        "max_enqueued_batches { value: 5 } num_batch_threads { value: 1 }\n"
        "allowed_batch_sizes: 2 allowed_batch_sizes: 4"
    )
    server = serve(tiny_base, enable_batching=True, batching_parameters_file=str(path))
    answer = calls.post(server, {"inputs": {"x": [[1]], "by": [1]}})
    assert answer == (200, {"outputs": {"y": [[1]], "rows": [2]}})  # padded to two rows
    assert calls.post(server, {"inputs": {"x": [[1]] * 5, "by": [1]}})[0] == 400
    path.write_text("allowed_batch_sizes: 2 allowed_batch_sizes: 4")
    with pytest.raises(InputError, match="allowed_batch_sizes"):
        serve(tiny_base, enable_batching=True, batching_parameters_file=str(path))


@pytest.fixture
def log_level():
    """Restore the level of the server's log, which the command changes."""
    logger = logging.getLogger("keras_llm.serve")
    level = logger.level
    yield
    logger.setLevel(level)


def test_command_reports_invalid_arguments(capfd, log_level):
    assert cli.main(["serve", "nowhere"]) == 2
    assert "nowhere has no version folder" in capfd.readouterr().err
    assert cli.main(["serve"]) == 2
    assert "model_base_path" in capfd.readouterr().err
    assert cli.main(["serve", "a", "--model_base_path", "b"]) == 2
    assert "cannot both be set" in capfd.readouterr().err


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_missing_package_error_names_the_extra(monkeypatch, package):
    for name in ("app", "http_server", "rest_api", "server"):
        monkeypatch.delitem(sys.modules, f"keras_llm.export.serving.server.{name}", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}: pip install 'keras-llm\[serving\]'"):
        export.LocalServer(export.ServerOptions("models"))


def test_server_is_public():
    assert export.LocalServer.__doc__ and export.ServerOptions.__doc__


def test_help_says_who_can_connect_and_reload(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "By default only this machine can connect" in text
    assert "empty disables the request" in text
