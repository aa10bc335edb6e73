"""Test the client with real servers over both protocols, and with missing and broken servers."""

import contextlib
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_llm import cli, export
from keras_llm.errors import InputError, ServingError

PROTOCOLS = ("grpc", "rest")


@pytest.fixture(scope="module")
def client_of():
    clients = []

    def make(server, protocol, model="stories", **options):
        rest = f"http://localhost:{server.rest_api_port}"
        target = rest if protocol == "rest" else f"localhost:{server.port}"
        clients.append(export.Client(target, model, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module", params=PROTOCOLS)
def client(request, text_server, client_of):
    return client_of(text_server, request.param)


@pytest.fixture(scope="module", params=PROTOCOLS)
def tiny(request, tiny_base, serve, client_of):
    # REST sends no deadline: a request continues after the client's timeout, until the server's.
    return client_of(serve(tiny_base, rest_api_timeout_in_ms=2000), request.param, "tiny")


def test_generate_matches_the_model(client, task, held_out_prompts):
    prompts = held_out_prompts[:7]
    expected = task(prompts, 12, temperature=0.0, return_details=True)
    details = client.generate(prompts, 12, temperature=0.0, return_details=True, batch_size=3)
    for found, row in zip(details, expected, strict=True):
        assert (found["text"], found["num_tokens"]) == (row.text, row.num_tokens)
        assert found["finish_reason"] == row.finish_reason
        assert found["log_probability"] == pytest.approx(row.log_probability, abs=1e-3)
    settings = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "seed": 5}
    assert client.generate("The", 12, **settings) == task("The", 12, **settings)
    each = {"max_new_tokens": [3, 6], "temperature": [0.0, 1.0], "seed": [1, 2]}
    alone = [
        task("The", 3, temperature=0.0, seed=1),
        task("a", 6, temperature=1.0, seed=2),
    ]
    assert client.generate(["The", "a"], **each) == alone
    assert client.generate(["The", "a"], **each, batch_size=1) == alone
    assert client.generate("The", 40) != client.generate("The", 40)  # random seeds
    assert client.generate("The", 3, seed=1, min_p=0.0) == task("The", 3, seed=1)  # off


def test_extended_settings_and_defaults(client, task):
    settings = {"temperature": 0.0, "repetition_penalty": 1.6, "min_new_tokens": 9}
    assert client.generate("The", 9, **settings) == task("The", 9, **settings)
    given = {"prompt": ["The"], "max_new_tokens": [5], "temperature": [0.0]}
    for signature in ("generate", "generate_extended"):
        found = client.predict(signature, given)
        assert found["text"].tolist() == [task("The", 5, temperature=0.0)]


def test_score_matches_the_model(client, task, held_out_prompts):
    found = client.score(held_out_prompts[:3])
    np.testing.assert_allclose(found, task.score(held_out_prompts[:3]), atol=1e-3)
    assert client.score("The import") == pytest.approx(task.score("The import"), abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "seed": -7},
        {"temperature": 0.7, "top_p": 0.9, "seed": 3},
    ],
)
def test_stream_matches_the_model(client, task, settings):
    pieces = list(client.stream("The import statement", 14, **settings))
    expected = task("The import statement", 14, **settings)
    assert "".join(pieces) == expected and all(pieces)
    assert len(pieces) > 1 or len(expected) < 5


def test_invalid_stream_raises_before_generation(client, tiny):
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"seed": 2**31}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            client.stream("The", **wrong)
    with pytest.raises(InputError, match="prompt"):
        client.stream("")
    missing = "decode, detokenize, is_end, prefill, tokenize"
    with pytest.raises(InputError, match=f"no signature {missing}"):
        tiny.stream("The")
    with pytest.raises(ServingError, match=r"cache_length must be in T \.\. 128"):
        next(client.stream("The", 1000))


def test_predict_any_signature(tiny):
    outputs = tiny.predict("serving_default", {"x": [[1, 2], [3, 4]], "by": np.array([1.0, 2.0])})
    assert outputs["y"].dtype == np.float32 and outputs["y"].tolist() == [[1, 2], [6, 8]]
    upper = tiny.predict("upper", {"text": ["é", b"\xffa"]})["upper"].tolist()
    assert upper == ["é", "\ufffdA"]
    assert tiny.predict("once", {"n": 4})["n"] == 5
    assert tiny.status() == [{"version": 1, "state": "AVAILABLE", "error": ""}]
    known = tiny.metadata()
    assert set(known) == {"serving_default", "upper", "once", "spin"}
    assert known["serving_default"]["inputs"]["x"] == {"dtype": 1, "shape": [None, None]}
    assert known["once"]["outputs"]["n"] == {"dtype": 3, "shape": []}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda c: c.predict("nope", {}), "no signature 'nope'; available: once"),
        (lambda c: c.predict("once", {"m": 1}), "no input 'm'; available: n"),
        (lambda c: c.predict("once", {"n": 1.5}), "`n` must be DT_INT32"),
        (lambda c: c.predict("once", {"n": 2**40}), "`n` must be DT_INT32"),
        (lambda c: c.predict("upper", {"text": [1]}), "`text` must be text"),
        (lambda c: c.predict("upper", {"text": ["\ud800"]}), "Unicode"),
        (lambda c: c.predict("serving_default", {"x": [[1], [1, 2]]}), "different lengths"),
        (lambda c: c.predict("once", {"n": 1}, timeout=0), "timeout"),
        (lambda c: c.generate("a"), "no signature 'generate'"),
        (lambda c: c.generate([]), "prompts"),
        (lambda c: c.generate([""]), "prompts"),
        (lambda c: c.score(1), "texts"),
    ],
)
def test_invalid_arguments_raise_before_sending(tiny, call, words):
    with pytest.raises(InputError, match=words):
        call(tiny)


def test_server_errors(client, tiny):
    with pytest.raises(ServingError, match="by must not be negative") as error:
        tiny.predict("serving_default", {"x": [[1]], "by": [-1]})
    assert error.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ServingError, match="missing by"):
        tiny.predict("serving_default", {"x": [[1]]})
    with pytest.raises(ServingError, match="temperature must be a number >= 0"):
        client.generate("The", temperature=float("nan"))
    with pytest.raises(InputError, match=r"unknown setting `mood`; available: .*max_new_tokens"):
        client.generate("The", mood=3)
    with pytest.raises(InputError, match="`seed` must be one value or 2"):
        client.generate(["a", "b"], seed=[1, 2, 3])
    with pytest.raises(InputError, match="batch_size"):
        client.generate("a", batch_size=0)
    begin = time.monotonic()
    with pytest.raises(ServingError) as error:
        tiny.predict("spin", {"times": [2**31 - 1]}, timeout=0.3)
    assert error.value.code == "DEADLINE_EXCEEDED" and time.monotonic() - begin < 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_version_and_label_select_a_version(protocol, tmp_path, save_tiny, serve, client_of):
    base, config = tmp_path / "tiny", tmp_path / "models.config"
    for version in (1, 2):
        save_tiny(base / str(version), float(version))
    config.write_text(
        f'model_config_list {{ config {{ name: "a b" base_path: "{base}" '
        'model_platform: "tensorflow" model_version_policy { all {} } '
        'version_labels { key: "old" value: 1 } } }'
    )
    server = serve(model_config_file=str(config))

    def factor(**which):
        client = client_of(server, protocol, "a b", **which)
        return client.predict("serving_default", {"x": [[1]], "by": [1]})["y"].item()

    assert [factor(), factor(version=1), factor(version=2), factor(label="old")] == [2, 1, 2, 1]
    for which in ({"version": 3}, {"label": "new"}):
        with pytest.raises(ServingError) as error:
            factor(**which)
        assert error.value.code == "NOT_FOUND"
    assert [row["version"] for row in client_of(server, protocol, "a b").status()] == [2, 1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"target": "localhost"}, "target"),
        ({"target": "ftp://localhost:1"}, "target"),
        ({"target": "http://localhost:x"}, "target"),
        ({"target": 8500}, "target"),
        ({"model": ""}, "model"),
        ({"model": "../etc"}, "model"),
        ({"version": 1, "label": "a"}, "not both"),
        ({"version": -1}, "version"),
        ({"version": "1"}, "version"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"headers": {"a": 1}}, "headers"),
        ({"headers": {"a": "b\r"}}, "headers"),
        ({"headers": {"a": "\u2713"}}, "Latin-1"),
        ({"client_key": "a"}, "client_certificate"),
        ({"root_certificates": "nowhere.pem"}, "root_certificates"),
        ({"target": "http://localhost:1", "root_certificates": "a.pem"}, "https"),
        ({"target": "https://localhost:1", "root_certificates": "a.pem"}, "certificate"),
    ],
)
def test_invalid_client_settings_raise(arguments, words):
    with pytest.raises(InputError, match=words):
        export.Client(**{"target": "localhost:1", "model": "m", **arguments})


# Servers that fail


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_unreachable_server_is_retried(scheme):
    target = f"{scheme}localhost:{free_port()}"
    begin = time.monotonic()
    with (
        pytest.raises(ServingError, match="UNAVAILABLE"),
        export.Client(target, "m", retries=2) as client,
    ):
        client.status()
    assert 0.15 <= time.monotonic() - begin < 5  # two delays
    with pytest.raises(ServingError), export.Client(target, "m", retries=99, timeout=0.5) as client:
        client.status()
    assert time.monotonic() - begin < 10  # no retries after the timeout


def test_only_unavailable_is_retried():
    """The server fails twice, and then answers."""
    calls = []

    class Flaky(prediction_service_pb2_grpc.PredictionServiceServicer):
        code = grpc.StatusCode.UNAVAILABLE

        def Predict(self, request, context):
            calls.append(dict(context.invocation_metadata()))
            if len(calls) < 3:
                context.abort(self.code, "try later")
            return predict_pb2.PredictResponse()

    from concurrent import futures

    flaky = Flaky()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(flaky, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        headers = {"Authorization": "Bearer secret"}
        with export.Client(f"localhost:{port}", "m", headers=headers) as client:
            client._signatures = {"once": {"inputs": {}, "outputs": {}}}
            assert client.predict("once", {}) == {}
            assert len(calls) == 3 and calls[0]["authorization"] == "Bearer secret"
            for code in ("INTERNAL", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "ABORTED"):
                calls.clear()
                flaky.code = getattr(grpc.StatusCode, code)
                client._signatures = {"once": {"inputs": {}, "outputs": {}}}
                with pytest.raises(ServingError, match=f"{code}: try later"):
                    client.predict("once", {})
                assert len(calls) == 1
    finally:
        server.stop(0)


@contextlib.contextmanager
def http_server(answers, idle_seconds=None):
    """A server that returns these responses (status, body) in order; status None disconnects."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = idle_seconds

        def do_GET(self):
            seen.append(dict(self.headers))
            status, body = answers[min(len(seen), len(answers)) - 1]
            if status is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def test_invalid_rest_responses():
    good = json.dumps({"model_version_status": []}).encode()
    with http_server([(503, b""), (None, b""), (200, good)]) as (target, seen):
        client = export.Client(target, "m", headers={"X-Who": "me"})
        assert client.status() == [] and len(seen) == 3 and seen[0]["X-Who"] == "me"
    for status, body, code in [
        (200, b"<html>", "INTERNAL"),
        (200, b"[]", "INTERNAL"),
        (404, b"no", "NOT_FOUND"),
        (400, b'{"error": "bad"}', "INVALID_ARGUMENT"),
        (418, b"", "INTERNAL"),
    ]:
        with (
            http_server([(status, body)]) as (target, seen),
            pytest.raises(ServingError) as error,
        ):
            export.Client(target, "m").status()
        assert error.value.code == code and len(seen) == 1


def test_connection_closed_by_the_server_is_reopened():
    good = json.dumps({"model_version_status": []}).encode()
    with http_server([(200, good)], idle_seconds=0.1) as (target, seen):
        client = export.Client(target, "m", retries=0)
        assert client.status() == []
        time.sleep(0.5)
        assert client.status() == [] and len(seen) == 2


def test_each_attempt_is_sent_once():
    with (
        http_server([(None, b"")]) as (target, seen),
        pytest.raises(ServingError, match="UNAVAILABLE"),
    ):
        export.Client(target, "m", retries=0).status()
    assert len(seen) == 1


def test_timeout_limits_sending_and_receiving():
    """The server accepts a request without reading it, or sends its response slowly."""

    def respond(listener):
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
            for _ in range(50):
                connection.sendall(b" ")
                time.sleep(0.1)

    for responds in (False, True):
        with socket.create_server(("localhost", 0)) as listener:
            target = f"http://localhost:{listener.getsockname()[1]}"
            if responds:
                threading.Thread(target=respond, args=(listener,), daemon=True).start()
            client = export.Client(target, "m", timeout=0.5)
            begin = time.monotonic()
            with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
                if responds:
                    client.status()
                else:
                    client._signatures = {"s": {"inputs": {"x": {"dtype": 7}}}}
                    client.predict("s", {"x": "a" * 50_000_000})
            assert time.monotonic() - begin < 4


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_closed_client_raises(scheme):
    client = export.Client(f"{scheme}localhost:1", "m")
    client.close()
    with pytest.raises(InputError, match="the client is closed"):
        client.status()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def test_tls(certificates, tiny_base, serve, tmp_path):
    def config(verify):
        texts = {
            "server_key": "server.key",
            "server_cert": "server.pem",
            "custom_ca": "ca.pem",
        }
        lines = [
            f"{name}: {json.dumps((certificates / file).read_text())}"
            for name, file in texts.items()
        ]
        path = tmp_path / f"ssl_{verify}.config"
        path.write_text("\n".join([*lines, f"client_verify: {verify}"]))
        return str(path)

    roots = {"root_certificates": str(certificates / "ca.pem"), "retries": 0}
    own = {
        "client_certificate": str(certificates / "client.pem"),
        "client_key": str(certificates / "client.key"),
    }
    for verify in ("false", "true"):
        server = serve(tiny_base, ssl_config_file=config(verify))
        target = f"localhost:{server.port}"
        for options, is_right in (
            ({**roots, **own}, True),
            (roots, verify == "false"),
            ({"retries": 0}, False),
            ({"tls": True, "retries": 0}, False),
        ):
            with export.Client(target, "tiny", timeout=10, **options) as client:
                if is_right:
                    assert client.predict("once", {"n": 1})["n"] == 2
                else:
                    with pytest.raises(ServingError, match="UNAVAILABLE"):
                        client.predict("once", {"n": 1})


# Hostile clients


def test_server_survives_hostile_requests(text_server, task, hostile):
    attacker = hostile(text_server.port, text_server.rest_api_port, seed=1, long_prompts=0)
    try:
        assert attacker.attack(100) == []
        expected = task("The", 4, temperature=0.0)
        assert attacker.good() == (expected, expected)
    finally:
        attacker.close()


# The command and its imports


def test_query_command(text_server, task, capfd):
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
        ([f"localhost:{free_port()}", "stories", "a", "--retries", "0"], "UNAVAILABLE"),
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
