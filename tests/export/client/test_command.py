"""Test `keras-llm query`, the imports of the client, and hostile clients."""

import json
import subprocess
import sys

import pytest

from keras_llm import cli, export
from keras_llm.errors import InputError


def test_server_survives_hostile_requests(text_server, task, hostile):
    attacker = hostile(text_server.port, text_server.rest_api_port, seed=1, long_prompts=0)
    try:
        assert attacker.attack(100) == []
        expected = task("The", 4, temperature=0.0)
        assert attacker.good() == (expected, expected)
    finally:
        attacker.close()


def test_query_command(text_server, task, capfd, free_port):
    target = f"localhost:{text_server.port}"
    settings = ["--temperature", "0", "--max_new_tokens", "9"]
    expected = task("The import", 9, temperature=0.0)
    for place in (target, f"http://localhost:{text_server.rest_api_port}"):
        assert cli.main(["query", place, "stories", "The import", *settings]) == 0
        assert capfd.readouterr().out == expected + "\n"
    assert cli.main(["query", target, "stories", "The import", *settings, "--stream"]) == 0
    assert capfd.readouterr().out == expected + "\n"
    assert cli.main(["query", target, "stories", "The import", *settings, "--json"]) == 0
    details = json.loads(capfd.readouterr().out)
    assert details["text"] == expected and details["prompt"] == "The import"
    assert cli.main(["query", target, "stories", "The import", "--signature", "score"]) == 0
    score = float(capfd.readouterr().out.splitlines()[0].split(": ")[1])
    assert score == pytest.approx(task.score("The import"), abs=1e-3)
    for arguments, words in [
        ([target, "nope", "a"], "NOT_FOUND"),
        ([target, "stories", "a", "--signature", "nope"], "score"),
        ([target, "stories", "a", "--signature", "prefill"], "single input"),
        ([target, "stories", "a", "--temperature", "nan"], "temperature must be a number"),
        (["localhost", "stories", "a"], "target"),
        ([f"localhost:{free_port}", "stories", "a", "--retries", "0"], "UNAVAILABLE"),
    ]:
        assert cli.main(["query", *arguments]) == 2
        error = capfd.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_missing_package_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "keras_llm.export.serving.client.rest", raising=False)
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(InputError, match=r"urllib3: pip install 'keras-llm\[serving\]'"):
        export.Client("http://localhost:1", "m")


def test_client_does_not_import_tensorflow(tiny_base, serve):
    server = serve(tiny_base)
    program = f"""
import sys
from keras_llm import export
for target in ("localhost:{server.port}", "http://localhost:{server.rest_api_port}"):
    with export.Client(target, model="tiny") as client:
        print(client.predict("upper", {{"text": ["a"]}})["upper"][0])
print([m for m in ("tensorflow", "keras", "tensorflow_serving") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["A", "A", "[]"], done.stderr
