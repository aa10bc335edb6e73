"""Test the HTTP server: malformed requests, limits, slow clients and shutdown."""

import contextlib
import http.client
import json
import logging
import pathlib
import runpy
import socket
import time
import types
from concurrent import futures

import pytest

from keras_llm.export.serving.server.options import bracketed

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))


def test_malformed_http_does_not_stop_the_server(server):
    post_line = b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    for request in (
        b"nonsense\r\n\r\n",
        b"GET / HTTP/x\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        post_line + b"A: " + b"b" * 70_000 + b"\r\n\r\n",
        post_line + b"\r\n{}",
        post_line + b"Content-Length: -5\r\n\r\n{}",
        post_line + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        post_line + b"Content-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}",
        post_line + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}",
        post_line + b"Transfer-Encoding: gzip\r\n\r\n{}",
    ):
        assert calls.raw(server, request).startswith((b"HTTP/1.1 4", b"HTTP/1.1 501")), request[
            :100
        ]
    answer = calls.raw(server, b"nonsense\r\n\r\n")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]
    with socket.create_connection(("localhost", server.rest_api_port)) as connection:
        connection.sendall(post_line + b"Content-Length: 500\r\n\r\n{}")  # and disconnect
    two = b"GET /v1/models/tiny HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /v1/models/tiny HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert calls.raw(server, two + last).count(b"AVAILABLE") == 2  # pipelined on one connection
    body = b'{"inputs": {"x": [[1]], "by": [1]}}'
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert calls.raw(server, post_line + chunked).startswith(b"HTTP/1.1 200")
    assert calls.post(server, body)[0] == 200


def test_responses_are_not_delayed(server):
    """A socket without TCP_NODELAY delays the body of a response by 40 ms."""
    connection = http.client.HTTPConnection("localhost", server.rest_api_port, timeout=30)
    with contextlib.closing(connection):
        seconds = []
        for _ in range(30):
            begin = time.monotonic()
            connection.request("GET", "/v1/models/tiny")
            connection.getresponse().read()
            seconds.append(time.monotonic() - begin)
    assert min(seconds[-10:]) < 0.03


def test_rest_limits(tiny_base, serve):
    server = serve(
        tiny_base,
        rest_api_max_body_bytes=1000,
        rest_api_timeout_in_ms=300,
        rest_api_enable_cors_support=True,
    )
    body = '{"signature_name": "upper", "instances": ["a"]}'
    assert calls.post(server, body.ljust(1000))[0] == 200
    for size in (1001, 5_000_000):
        status, answer = calls.post(server, body.ljust(size))
        assert status == 413 and "1000 bytes" in answer["error"]
    with socket.create_connection(("localhost", server.rest_api_port), timeout=10) as connection:
        connection.sendall(calls.HEAD % 9)
        assert connection.recv(65536).startswith(b"HTTP/1.1 504")  # the body does not arrive
        while connection.recv(65536):  # until the server closes the connection
            pass
    with socket.create_connection(("localhost", server.rest_api_port), timeout=10) as connection:
        connection.sendall(calls.HEAD % 5_000_000_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")  # at once
    spin = {"signature_name": "spin", "instances": [2**31 - 1]}
    status, answer = calls.post(server, spin)
    assert status == 504 and answer["error"]
    origin = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    assert calls.http_call(server, "OPTIONS", "/v1/models/tiny:predict", headers=origin)[0] == 200


def test_concurrent_requests_are_limited(tiny_base, serve):
    server = serve(tiny_base, rest_api_num_threads=2)
    running = [calls.connect(server, calls.HEAD % 9) for _ in range(2)]
    calls.wait_until(lambda: calls.http_call(server, "GET", "/v1/models")[0] == 503)
    assert "maximum" in calls.http_call(server, "GET", "/v1/models")[1]["error"]
    assert calls.http_call(server, "GET", "/monitoring/prometheus/metrics")[0] == 200
    for connection in running:
        connection.close()
    calls.wait_until(lambda: calls.http_call(server, "GET", "/v1/models")[0] == 200)


def test_idle_connections_are_closed(tiny_base, serve, monkeypatch):
    module = "keras_llm.export.serving.server.http_server"
    monkeypatch.setattr(f"{module}._IDLE_SECONDS", 0.3)
    monkeypatch.setattr(f"{module}._MIN_BYTES_PER_SECOND", 10**7)
    server = serve(tiny_base, rest_api_num_threads=2)
    connections = server._rest.server_state.connections
    requests = [b"", b"", b"GET / HTTP/1.1\r\nHost", calls.large_request()]
    for opened in [calls.connect(server, data) for data in requests]:  # it does not read
        with opened:
            calls.wait_until(lambda: not connections)
    assert calls.http_call(server, "GET", "/v1/models")[0] == 200


def test_close_ends_requests_after_the_grace_period(tiny_base, serve, caplog):
    server = serve(tiny_base, rest_api_timeout_in_ms=4000)
    with (
        futures.ThreadPoolExecutor(1) as pool,
        calls.connect(server, calls.HEAD % 9) as upload,
        calls.connect(server, calls.large_request()),
    ):
        request = pool.submit(
            calls.post, server, {"signature_name": "spin", "inputs": {"times": [2**31 - 1]}}
        )
        calls.wait_until(lambda: len(server._rest.server_state.tasks) == 2)
        begin = time.monotonic()
        server.close(grace=0.5)
        assert time.monotonic() - begin < 10
        assert request.result() == (503, {"error": "the server is shutting down."})
        assert upload.recv(65536).startswith(b"HTTP/1.1 503")
    assert not [row for row in caplog.records if row.name.startswith(("uvicorn", "keras_llm"))]
    assert logging.getLogger("uvicorn.error").level == logging.NOTSET


def test_rest_server_that_does_not_start_raises(tiny_base, serve, monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)  # the thread ends
    with pytest.raises(RuntimeError, match="could not be started"):
        serve(tiny_base)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_all_addresses_include_ipv4(tiny_base, serve):
    server = serve(tiny_base, host="::")
    for host in ("127.0.0.1", "::1"):
        for port in (server.port, server.rest_api_port):
            socket.create_connection((host, port), timeout=10).close()
    assert [bracketed(host) for host in ("::1", "localhost")] == ["[::1]", "localhost"]
