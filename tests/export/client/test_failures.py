"""Test the client with missing, broken and slow servers."""

import contextlib
import http.server
import json
import socket
import threading
import time

import grpc
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_llm import export
from keras_llm.errors import InputError, ServingError


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_unreachable_server_is_retried(scheme, free_port):
    target = f"{scheme}localhost:{free_port}"
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
