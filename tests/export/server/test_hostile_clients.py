"""Test clients that are slow, go away, or ask for more memory than the machine has."""

import importlib
import pathlib
import runpy
import socket
import threading
import time
import types

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_llm.export.serving.server.servable import Servable

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))

ENDLESS = 2**31 - 1  # steps of the signature `spin`, which take minutes
GET = b"GET /v1/models/tiny HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["one by one", "in batches"])
def batching(request):
    return request.param


@pytest.fixture(scope="module")
def either_server(tiny_base, serve, batching):
    """A server without and with batching, whose runs have no deadline over REST."""
    return serve(tiny_base, enable_batching=batching, rest_api_timeout_in_ms=600_000)


def seconds_open(connection, step):
    """Call `step` every 10 ms until the server closes the connection; return the seconds."""
    begin = time.monotonic()
    while time.monotonic() - begin < 20:
        try:
            step()
            connection.settimeout(0.01)
            if connection.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begin


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nA: ", GET + b"\r\nGET / HTTP/1.1\r\nA: "])
def test_connections_that_trickle_a_request_are_closed(tiny_base, serve, monkeypatch, start):
    monkeypatch.setattr("keras_llm.export.serving.server.http_server._IDLE_SECONDS", 0.5)
    server = serve(tiny_base)
    with calls.connect(server, start) as connection:
        assert seconds_open(connection, lambda: connection.sendall(b"a")) < 5


@pytest.mark.parametrize("method", [b"GET /v1/models/tiny", b"POST /v1/models/tiny:predict"])
def test_connections_that_trickle_a_body_are_closed(tiny_base, serve, monkeypatch, method):
    monkeypatch.setattr("keras_llm.export.serving.server.http_server._IDLE_SECONDS", 0.5)
    server = serve(tiny_base, rest_api_timeout_in_ms=500)
    head = method + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    with calls.connect(server, head) as connection:
        assert seconds_open(connection, lambda: connection.sendall(b"a")) < 5


def test_connections_that_trickle_a_response_are_closed(tiny_base, serve, monkeypatch):
    module = "keras_llm.export.serving.server.http_server"
    monkeypatch.setattr(f"{module}._IDLE_SECONDS", 0.5)
    monkeypatch.setattr(f"{module}._MIN_BYTES_PER_SECOND", 10**8)
    server = serve(tiny_base)
    connections = server._rest.server_state.connections
    with calls.connect(server, calls.large_request()) as connection:
        begin = time.monotonic()
        while connections and time.monotonic() - begin < 20:
            connection.recv(1)
            time.sleep(0.01)
        assert time.monotonic() - begin < 10


def test_a_slow_but_steady_reader_gets_its_response(tiny_base, serve, monkeypatch):
    monkeypatch.setattr("keras_llm.export.serving.server.http_server._IDLE_SECONDS", 0.5)
    server = serve(tiny_base)
    answer = bytearray()
    address = ("localhost", server.rest_api_port)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(calls.large_request())
        while not answer.endswith(b"}"):  # takes longer than _IDLE_SECONDS
            part = connection.recv(65536)
            assert part
            answer += part
            time.sleep(0.01)
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("start", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"])
def test_grpc_connections_without_calls_are_closed(tiny_base, serve, monkeypatch, start):
    module = "keras_llm.export.serving.server.server"
    short = [("grpc.server_handshake_timeout_ms", 500), ("grpc.max_connection_idle_ms", 1000)]
    names = [name for name, _ in short]
    assert set(names) <= {name for name, _ in importlib.import_module(module)._GRPC_OPTIONS}
    monkeypatch.setattr(f"{module}._GRPC_OPTIONS", short)
    server = serve(tiny_base)
    frame = iter(b"\0\x10\0\0\0\0\0\0\0")  # of 4 KiB
    with socket.create_connection(("localhost", server.port), timeout=10) as connection:
        connection.sendall(start)
        assert seconds_open(connection, lambda: connection.sendall(bytes([next(frame, 0)]))) < 10


def test_grpc_calls_without_a_message_do_not_occupy_the_threads(
    tiny_base, serve, channel_to, monkeypatch
):
    monkeypatch.setattr("keras_llm.export.serving.server.server._GRPC_THREADS", 2)
    monkeypatch.setattr("keras_llm.export.serving.server.server._MESSAGE_SECONDS", 0.5)
    server = serve(tiny_base)
    channel, stop = channel_to(server), threading.Event()

    def messages():
        stop.wait(20)
        yield b""

    path = "/tensorflow.serving.PredictionService/Predict"
    silent = [channel.stream_unary(path).future(messages()) for _ in range(2)]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert calls.factor(stub) == 1  # after the two calls are canceled
    assert [call.code() for call in silent] == [grpc.StatusCode.CANCELLED] * 2
    stop.set()
    code, details = calls.fails(channel.stream_unary(path), iter(()))
    assert code == "INVALID_ARGUMENT" and "no message" in details


def users(server):
    return sum(entry.users for entry in server._core.models._versions["tiny"].values())


@pytest.mark.parametrize("protocol", ["gRPC", "REST"])
def test_a_run_is_stopped_when_its_client_disconnects(either_server, channel_to, protocol):
    server = either_server
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    body = b'{"signature_name": "spin", "instances": [%d]}' % ENDLESS
    for _ in range(3):
        if protocol == "gRPC":
            request = calls.predict_request(signature="spin", times=np.array([ENDLESS], "int32"))
            stop = stub.Predict.future(request).cancel
        else:
            stop = calls.connect(server, calls.HEAD % len(body) + body).close
        calls.wait_until(lambda: users(server) == 1)
        time.sleep(0.2)
        assert users(server) == 1
        stop()
        calls.wait_until(lambda: users(server) == 0)
    # The queue of a stopped run can be used again.
    times = np.array([5], "int32")
    for _ in range(3):
        response = stub.Predict(calls.predict_request(signature="spin", times=times), timeout=30)
        assert tf.make_ndarray(response.outputs["count"]).tolist() == [5]


def test_clients_that_disconnect_at_any_time_do_not_disturb_others(tiny_base, serve, channel_to):
    server = serve(tiny_base, enable_batching=True)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    stop, wrong, rng = threading.Event(), [], np.random.default_rng(0)

    def disconnect():
        while not stop.is_set():
            times = np.array([rng.integers(1, 3000)], "int32")
            future = stub.Predict.future(calls.predict_request(signature="spin", times=times))
            time.sleep(rng.uniform(0, 0.01))
            future.cancel()

    threads = [threading.Thread(target=disconnect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(100):
            times = np.array([i + 1], "int32")
            request = calls.predict_request(signature="spin", times=times)
            try:
                outputs = stub.Predict(request, timeout=30).outputs
            except grpc.RpcError as error:
                wrong.append(error)
                continue
            if tf.make_ndarray(outputs["count"]).item() < i + 1:  # the most steps of its batch
                wrong.append(outputs)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]


def test_the_number_of_texts_is_limited(tiny_base, serve):
    server = serve(tiny_base, max_texts=3)
    for count, status in ((3, 200), (4, 400)):
        body = {"signature_name": "upper", "instances": ["a"] * count}
        found, answer = calls.post(server, body)
        assert found == status and (found == 200 or "`max_texts` (3)" in answer["error"])


MANY = 100_000


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"x": [[1] * MANY], "by": [1] * MANY}, "40000000000 bytes for 100000 rows"),
        ({"x": [["a" * MANY, *"b" * MANY]], "by": [1]}, "`x` must be DT_FLOAT, got text"),
        ({"x": [["a" * MANY, *[1] * MANY]], "by": [1]}, "`x` must be DT_FLOAT, got other values"),
        ({"x": [[1]], "by": ["a" * MANY, *"b" * MANY]}, "`by` must be DT_FLOAT, got text"),
    ],
)
def test_bodies_that_ask_for_gigabytes_are_refused(either_server, batching, inputs, words):
    status, answer = calls.post(either_server, {"inputs": inputs})
    limit = "rows exceed `max_batch_size`" if batching and "rows" in words else words
    assert status == 400 and (words in answer["error"] or limit in answer["error"]), answer


def test_unknown_inputs_are_refused_before_they_are_converted(server, stub):
    request = calls.scale_request()
    for i in range(10_000):
        proto = request.inputs[f"more{i}"]
        proto.dtype = 9
        proto.tensor_shape.dim.add(size=2**20)
        proto.int64_val.append(1)  # repeated, 8 MB
    begin = time.monotonic()
    code, details = calls.fails(stub.Predict, request)
    assert code == "INVALID_ARGUMENT" and "unknown more0, more1" in details
    assert time.monotonic() - begin < 10


def test_a_lack_of_memory_is_an_error_of_the_request(either_server, channel_to, monkeypatch):
    server = either_server
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    body = {"inputs": {"x": [[1]], "by": [1]}}
    assert calls.post(server, body)[0] == 200

    def run(*_):
        raise MemoryError("Unable to allocate 37.3 GiB for an array")

    monkeypatch.setattr(Servable, "_run_session", run)
    assert calls.post(server, body) == (
        429,
        {"error": "there is not enough memory for the request."},
    )
    assert calls.fails(stub.Predict, calls.scale_request())[0] == "RESOURCE_EXHAUSTED"
