"""Test the local server with TensorFlow Serving's gRPC stubs and plain HTTP requests."""

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_llm import export
from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving.server.options import bracketed


@pytest.fixture(scope="module")
def server(tiny_base, serve):
    return serve(tiny_base)


@pytest.fixture(scope="module")
def channel_to():
    channels = []

    def open_channel(server):
        channels.append(grpc.insecure_channel(f"localhost:{server.port}"))
        return channels[-1]

    yield open_channel
    for channel in channels:
        channel.close()


@pytest.fixture(scope="module")
def stub(server, channel_to):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))


def predict_request(model="tiny", signature="", version=None, label="", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def scale_request(x=1.0, by=1.0, **options):
    x, by = np.full((1, 1), x, "float32"), np.full(1, by, "float32")
    return predict_request(x=x, by=by, **options)


def http_call(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("localhost", server.rest_api_port, timeout=30)
    with contextlib.closing(connection):
        if body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data[:1] == b"{" else data.decode()


def post(server, body, model="tiny", method="predict"):
    return http_call(server, "POST", f"/v1/models/{model}:{method}", body)


def fails(call, request, **options):
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=30, **options)
    return error.value.code().name, error.value.details()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


# gRPC


def test_predict(stub):
    request = predict_request(
        x=np.array([[1, 2], [3, 4]], "float32"), by=np.array([1, 2], "float32")
    )
    response = stub.Predict(request, timeout=30)
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [[1, 2], [6, 8]]
    assert set(response.outputs) == {"y", "rows"}
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("tiny", 1, "serving_default")
    request.output_filter.append("y")
    assert set(stub.Predict(request).outputs) == {"y"}  # and without a deadline
    text = stub.Predict(
        predict_request(signature="upper", text=["é".encode(), b"\xffa"]), timeout=30
    )
    assert list(text.outputs["upper"].string_val) == ["é".encode(), b"\xffA"]
    once = stub.Predict(predict_request(signature="once", n=np.array(4, "int32")), timeout=30)
    assert tf.make_ndarray(once.outputs["n"]) == 5 and not once.outputs["n"].tensor_shape.dim


X, BY = np.ones((1, 1), "float32"), np.ones(1, "float32")


@pytest.mark.parametrize(
    "request_, code, words",
    [
        (predict_request("no", x=X, by=BY), "NOT_FOUND", "no model 'no'"),
        (predict_request("../tiny", x=X, by=BY), "NOT_FOUND", "no model"),
        (predict_request("", x=X, by=BY), "INVALID_ARGUMENT", "does not name a model"),
        (scale_request(version=7), "NOT_FOUND", "version 7"),
        (scale_request(label="stable"), "NOT_FOUND", "label 'stable'"),
        (scale_request(signature="nope"), "INVALID_ARGUMENT", "signature 'nope'; available: once"),
        (predict_request(x=X), "INVALID_ARGUMENT", "missing by"),
        (predict_request(x=X, by=BY, z=BY), "INVALID_ARGUMENT", "unknown z"),
        (predict_request(x=X, by=np.ones(1, "int32")), "INVALID_ARGUMENT", "by must be DT_FLOAT"),
        (predict_request(x=["a"], by=BY), "INVALID_ARGUMENT", "x must be DT_FLOAT, got DT_STRING"),
        (predict_request(x=BY, by=BY), "INVALID_ARGUMENT", r"x must have shape \[\?, \?\]"),
        (scale_request(by=-1.0), "INVALID_ARGUMENT", "^by must not be negative$"),
    ],
)
def test_invalid_request_returns_error_message(stub, request_, code, words):
    found, details = fails(stub.Predict, request_)
    assert found == code and re.search(words, details), (found, details)


def test_unsupported_calls_return_error_codes(stub, channel_to, server):
    request = scale_request()
    request.output_filter.append("nope")
    assert fails(stub.Predict, request)[0] == "INVALID_ARGUMENT"
    assert fails(stub.MultiInference, inference_pb2.MultiInferenceRequest())[0] == "UNIMPLEMENTED"
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name = "tiny"
    code, details = fails(stub.Classify, classify)
    assert code == "INVALID_ARGUMENT" and "not tensorflow/serving/classify" in details
    raw = channel_to(server).unary_unary("/tensorflow.serving.PredictionService/Predict")
    code, _ = fails(raw, b"\xff\xff\xff malformed")
    assert code in ("INTERNAL", "INVALID_ARGUMENT")  # gRPC's own error for invalid bytes
    long_name = predict_request("n" * 100_000, x=X, by=BY)
    code, details = fails(stub.Predict, long_name)
    assert code == "NOT_FOUND" and len(details) < 2000


def test_metadata_and_status(stub, channel_to, server):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "tiny"
    response = stub.GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "upper", "once", "spin"}
    assert signatures.signature_def["upper"].inputs["text"].dtype == tf.string.as_datatype_enum
    request.metadata_field[:] = ["other"]
    assert fails(stub.GetModelMetadata, request)[0] == "INVALID_ARGUMENT"
    models = model_service_pb2_grpc.ModelServiceStub(channel_to(server))
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "tiny"
    (found,) = models.GetModelStatus(status, timeout=30).model_version_status
    assert (found.version, found.state, found.status.error_code) == (1, 30, 0)
    status.model_spec.version.value = 3
    assert fails(models.GetModelStatus, status)[0] == "NOT_FOUND"
    rest_status, shown = http_call(server, "GET", "/v1/models/tiny/versions/1")
    assert rest_status == 200 and shown == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    _, shown = http_call(server, "GET", "/v1/models/tiny/metadata")
    assert shown["model_spec"] == {"name": "tiny", "signature_name": "", "version": "1"}
    spec = shown["metadata"]["signature_def"]["signature_def"]["once"]
    assert spec["inputs"]["n"]["tensor_shape"] == {"dim": [], "unknown_rank": False}
    assert spec["method_name"] == "tensorflow/serving/predict"


def test_deadline_and_text_limit(tiny_base, serve, channel_to):
    server = serve(tiny_base, max_text_bytes=10)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    spin = predict_request(signature="spin", times=np.array([2**31 - 1], "int32"))
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(spin, timeout=0.3)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # The server aborts the graph; it does not only stop waiting.
    wait_until(lambda: server._core.models._versions["tiny"][1].users == 0)
    assert time.monotonic() - begin < 10
    body = {"signature_name": "upper", "instances": ["a" * 5, "b" * 5]}
    assert post(server, body)[0] == 200
    body["instances"].append("c")
    status, answer = post(server, body)
    assert status == 400 and "11 bytes, more than `max_text_bytes` (10)" in answer["error"]
    long_text = predict_request(signature="upper", text=["a" * 11])
    assert fails(stub.Predict, long_text)[0] == "INVALID_ARGUMENT"
    large = np.ones((1, 2**21), "float32")  # 8 MiB, more than gRPC's default limit
    request = predict_request(x=large, by=BY)
    request.output_filter.append("rows")
    assert tf.make_ndarray(stub.Predict(request, timeout=30).outputs["rows"]) == [1]


# REST


def test_rest_predict_row_and_column_formats(server):
    rows = {"instances": [{"x": [1, 2], "by": 1}, {"x": [3, 4], "by": 2}]}
    assert post(server, rows) == (
        200,
        {"predictions": [{"y": [1, 2], "rows": 2}, {"y": [6, 8], "rows": 2}]},
    )
    columns = {"inputs": {"x": [[1, 2]], "by": [3]}}
    assert post(server, columns) == (200, {"outputs": {"y": [[3, 6]], "rows": [1]}})
    text = {"signature_name": "upper", "instances": ["a", {"b64": "4pyT"}]}
    assert post(server, text) == (200, {"predictions": ["A", "\u2713"]})
    named = {"signature_name": "upper", "instances": [{"text": "a"}, {"text": {"b64": "Yg=="}}]}
    assert post(server, named) == (200, {"predictions": ["A", "B"]})
    bare = {"signature_name": "upper", "inputs": ["a", "b"]}
    assert post(server, bare) == (200, {"outputs": ["A", "B"]})
    assert post(server, {**bare, "inputs": {"text": ["a"]}}) == (200, {"outputs": ["A"]})
    assert post(server, {"signature_name": "once", "inputs": {"n": 4}}) == (200, {"outputs": 5})
    infinite = post(server, '{"inputs": {"x": [[Infinity]], "by": [1]}}')
    assert infinite[1]["outputs"]["y"] == [[float("inf")]]
    path = "/v1/models/tiny/versions/1:predict"
    assert http_call(server, "POST", path, columns)[0] == 200


@pytest.mark.parametrize(
    "body, words",
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "JSON object"),
        ({}, '"instances" or "inputs"'),
        ({"instances": [1], "inputs": 1}, '"instances" or "inputs"'),
        ({"instances": []}, '"instances" must be a non-empty list'),
        ({"instances": {"x": 1}}, '"instances" must be a non-empty list'),
        ({"instances": [1]}, "several inputs"),
        ({"instances": [{"x": [1], "by": 1}, {"x": [1]}]}, "the same inputs"),
        ({"instances": [{"x": [1], "by": 1}, {"x": [1, 2], "by": 1}]}, "different lengths"),
        ({"instances": [{"x": [1]}]}, "missing by"),
        ({"inputs": {"x": [[1]], "by": [1], "c": 1}}, "unknown c"),
        ({"inputs": {"x": [["a"]], "by": [1]}}, "`x` must be DT_FLOAT"),
        ({"inputs": {"x": [[1]], "by": [-1]}}, "by must not be negative"),
        ({"inputs": 1, "signature_name": 1}, "signature_name"),
        ({"inputs": 1, "signature_name": "\ud800"}, "signature"),
        ({"inputs": 1, "more": 1}, "unknown field 'more'"),
        ({"inputs": {"n": 2**31}, "signature_name": "once"}, "`n` must be DT_INT32"),
        ({"inputs": ["\ud800"], "signature_name": "upper"}, "Unicode"),
        ({"instances": [1], "signature_name": "once"}, "shape"),
        (
            b'{"signature_name": "upper", "inputs": %s"a"%s}' % (b"[" * 65, b"]" * 65),
            "64 dimensions",
        ),
    ],
)
def test_invalid_body_returns_error_message(server, body, words):
    status, answer = post(server, body)
    assert status == 400 and words in answer["error"], answer


def test_rest_paths_and_methods(server):
    for path in ("/v1/models/no", "/v1/models/no/metadata", "/nothing", "/v1/models/..%2F..%2Fetc"):
        status, answer = http_call(server, "GET", path)
        assert status == 404 and answer["error"], path
    for path in ("/v1/models/tiny:nothing", "/v1/models/no:predict"):
        status, answer = http_call(server, "POST", path, {"inputs": 1})
        assert status == 404 and answer["error"], path
    for path in ("/v1/models/..%2f:predict", "/", "/v1/models/tiny", "/nothing"):
        status, answer = http_call(server, "POST", path, {})
        assert status == 405 and answer["error"], path
    assert http_call(server, "GET", "/v1/models/tiny:predict")[0] == 405
    assert http_call(server, "GET", "/v1/models/%ff")[0] == 404
    assert http_call(server, "GET", "/../options.py")[0] == 404
    assert http_call(server, "GET", "/%2e%2e/options.py")[0] == 404
    assert http_call(server, "GET", f"/v1/models/tiny/versions/{'9' * 5000}")[0] == 400
    assert http_call(server, "GET", "/v1/models/tiny/versions/99999999999999999999")[0] == 400
    assert http_call(server, "POST", "/v1/models/tiny/labels/x:predict", {"inputs": 1})[0] == 404
    assert http_call(server, "PUT", "/v1/models/tiny", b"")[0] == 405
    assert http_call(server, "OPTIONS", "/v1/models/tiny")[0] == 405
    page_url = f"http://localhost:{server.rest_api_port}/"
    with urllib.request.urlopen(page_url, timeout=30) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    status, page = http_call(server, "GET", "/")
    assert status == 200 and page.startswith("<!doctype html>") and "http" not in page
    assert http_call(server, "GET", "/page.js")[0] == 200
    models = http_call(server, "GET", "/v1/models")[1]["models"]
    assert [model["name"] for model in models] == ["tiny"]


def raw(server, text):
    """Send bytes over a new connection and return what the server sends until it closes."""
    with socket.create_connection(("localhost", server.rest_api_port), timeout=10) as connection:
        connection.sendall(text)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


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
        assert raw(server, request).startswith((b"HTTP/1.1 4", b"HTTP/1.1 501")), request[:100]
    answer = raw(server, b"nonsense\r\n\r\n")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]
    with socket.create_connection(("localhost", server.rest_api_port)) as connection:
        connection.sendall(post_line + b"Content-Length: 500\r\n\r\n{}")  # and disconnect
    two = b"GET /v1/models/tiny HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /v1/models/tiny HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert raw(server, two + last).count(b"AVAILABLE") == 2  # pipelined on one connection
    body = b'{"inputs": {"x": [[1]], "by": [1]}}'
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert raw(server, post_line + chunked).startswith(b"HTTP/1.1 200")
    assert post(server, body)[0] == 200


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
    assert post(server, body.ljust(1000))[0] == 200
    for size in (1001, 5_000_000):
        status, answer = post(server, body.ljust(size))
        assert status == 413 and "1000 bytes" in answer["error"]
    with socket.create_connection(("localhost", server.rest_api_port), timeout=10) as connection:
        connection.sendall(HEAD % 9)
        assert connection.recv(65536).startswith(b"HTTP/1.1 504")  # the body does not arrive
        while connection.recv(65536):  # until the server closes the connection
            pass
    with socket.create_connection(("localhost", server.rest_api_port), timeout=10) as connection:
        connection.sendall(HEAD % 5_000_000_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")  # at once
    spin = {"signature_name": "spin", "instances": [2**31 - 1]}
    status, answer = post(server, spin)
    assert status == 504 and answer["error"]
    origin = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    assert http_call(server, "OPTIONS", "/v1/models/tiny:predict", headers=origin)[0] == 200


HEAD = b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


def connect(server, data):
    """Open a connection with a small receive buffer and send data."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("localhost", server.rest_api_port))
    connection.sendall(data)
    return connection


def large_request():
    """Return a request with a response that does not fit in the buffers of the sockets."""
    body = json.dumps({"inputs": {"x": [[0.123456789] * 500_000], "by": [1]}}).encode()
    return HEAD % len(body) + body


def test_concurrent_requests_are_limited(tiny_base, serve):
    server = serve(tiny_base, rest_api_num_threads=2)
    running = [connect(server, HEAD % 9) for _ in range(2)]
    wait_until(lambda: http_call(server, "GET", "/v1/models")[0] == 503)
    assert "maximum" in http_call(server, "GET", "/v1/models")[1]["error"]
    assert http_call(server, "GET", "/monitoring/prometheus/metrics")[0] == 200
    for connection in running:
        connection.close()
    wait_until(lambda: http_call(server, "GET", "/v1/models")[0] == 200)


def test_idle_connections_are_closed(tiny_base, serve, monkeypatch):
    monkeypatch.setattr("keras_llm.export.serving.server.http_server._IDLE_SECONDS", 0.3)
    server = serve(tiny_base, rest_api_num_threads=2)
    connections = server._rest.server_state.connections
    requests = [b"", b"", b"GET / HTTP/1.1\r\nHost", large_request()]
    for opened in [connect(server, data) for data in requests]:  # it does not read
        with opened:
            wait_until(lambda: not connections)
    assert http_call(server, "GET", "/v1/models")[0] == 200


def test_close_ends_requests_after_the_grace_period(tiny_base, serve, caplog):
    server = serve(tiny_base, rest_api_timeout_in_ms=4000)
    with (
        futures.ThreadPoolExecutor(1) as pool,
        connect(server, HEAD % 9) as upload,
        connect(server, large_request()),
    ):
        request = pool.submit(
            post, server, {"signature_name": "spin", "inputs": {"times": [2**31 - 1]}}
        )
        wait_until(lambda: len(server._rest.server_state.tasks) == 2)
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


# Examples, warm-up, metrics


@pytest.fixture(scope="module")
def example_server(tmp_path_factory, serve):
    """A server of a model whose signatures read `tf.train.Example`s."""
    base = tmp_path_factory.mktemp("served") / "old"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], "examples")
        x = v1.parse_example(serialized, {"x": v1.FixedLenFeature([], tf.float32)})["x"]
        scores = tf.stack([x, 1 - x], axis=1)
        classes = tf.tile([["yes", "no"]], [tf.shape(x)[0], 1])
        utils = v1.saved_model.signature_def_utils
        builder = v1.saved_model.Builder(str(base / "1"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": utils.classification_signature_def(serialized, classes, scores),
                "twice": utils.regression_signature_def(serialized, 2 * x),
            },
        )
        builder.save()
    return serve(base, enable_batching=True)


def example(x):
    made = tf.train.Example()
    made.features.feature["x"].float_list.value.append(x)
    return made


def test_classify_and_regress(example_server, channel_to):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(example_server))
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "old"
    request.input.example_list.examples.extend([example(0.25), example(1.0)])
    result = stub.Classify(request, timeout=30).result
    assert [[(c.label, c.score) for c in row.classes] for row in result.classifications] == [
        [("yes", 0.25), ("no", 0.75)],
        [("yes", 1.0), ("no", 0.0)],
    ]
    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = "old", "twice"
    request.input.example_list_with_context.context.CopyFrom(example(0.5))
    request.input.example_list_with_context.examples.add()
    response = stub.Regress(request, timeout=30)
    assert [row.value for row in response.result.regressions] == [1.0]
    assert response.model_spec.version.value == 1
    rest = post(example_server, {"examples": [{"x": 0.25}]}, "old", "classify")
    assert rest == (200, {"results": [[["yes", 0.25], ["no", 0.75]]]})
    body = {"signature_name": "twice", "examples": [{}], "context": {"x": [2.0]}}
    assert post(example_server, body, "old", "regress") == (200, {"results": [4.0]})
    for wrong in ({"examples": []}, {"examples": [1]}, {"examples": [{"x": [1, "a"]}]}, {"x": 1}):
        assert post(example_server, wrong, "old", "classify")[0] == 400
    assert post(example_server, {"examples": [{"x": 1}]}, "old", "regress")[0] == 400
    assert fails(stub.Regress, regression_pb2.RegressionRequest())[0] == "INVALID_ARGUMENT"


def write_warmup(folder, *requests):
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra/tf_serving_warmup_requests")) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


def test_warmup_requests_run_before_serving(tmp_path, save_tiny, serve):
    save_tiny(tmp_path / "m/1", 1.0)
    write_warmup(tmp_path / "m/1", scale_request(), predict_request(signature="upper", text=["a"]))
    serve(tmp_path / "m")
    save_tiny(tmp_path / "bad/1", 1.0)
    write_warmup(tmp_path / "bad/1", scale_request(), scale_request(by=-1.0))
    with pytest.raises(InputError, match="warm-up request 2: by must not be negative"):
        serve(tmp_path / "bad")
    serve(tmp_path / "bad", enable_model_warmup=False)
    (tmp_path / "bad/1/assets.extra/tf_serving_warmup_requests").write_bytes(b"no records" * 9)
    with pytest.raises(InputError, match="tf_serving_warmup_requests cannot be read"):
        serve(tmp_path / "bad")


def test_metrics(serve, tiny_base, channel_to):
    server = serve(tiny_base, enable_batching=True)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    stub.Predict(scale_request(), timeout=30)
    post(server, {"inputs": {"x": [[1]], "by": [-1]}})
    for i in range(3):
        post(server, {}, f"unknown{i}")
    status, page = http_call(server, "GET", "/monitoring/prometheus/metrics")
    assert status == 200
    lines = page.splitlines()
    count = ":tensorflow:serving:request_count"
    assert f'{count}{{model_name="tiny",status="OK"}} 1' in lines
    assert f'{count}{{model_name="tiny",status="INVALID_ARGUMENT"}} 1' in lines
    assert (
        "unknown0" not in page and f'{count}{{model_name="",status="INVALID_ARGUMENT"}} 3' in lines
    )
    latency = '{API="predict",entrypoint="GRPC",model_name="tiny"'
    assert f":tensorflow:serving:request_latency_count{latency}}} 1" in lines
    assert f':tensorflow:serving:request_latency_bucket{latency},le="+Inf"}} 1' in lines
    assert ":tensorflow:serving:batching_session:processed_batch_size_sum 2" in lines


# Versions


def factor(stub, **spec):
    return tf.make_ndarray(stub.Predict(scale_request(**spec), timeout=30).outputs["y"]).item()


def test_version_changes_do_not_fail_requests(tmp_path, save_tiny, serve, channel_to):
    base = tmp_path / "tiny"
    save_tiny(base / "1", 1.0)
    server = serve(base, file_system_poll_wait_seconds=0.05, enable_batching=True)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    seen, failed, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                seen.append(factor(stub))
            except grpc.RpcError as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(seen) > 20)
        for version in (2, 3):
            save_tiny(base / str(version), float(version))
            wait_until(lambda v=version: server.models() == {"tiny": [v]})
        shutil.rmtree(base / "3")  # the newest remaining version is served again
        wait_until(lambda: server.models() == {"tiny": [2]})
        count = len(seen)
        wait_until(lambda: len(seen) > count + 20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed and set(seen) == {1.0, 2.0, 3.0} and seen[-1] == 2.0
    states = {row[0]: row[1] for row in server._core.models.status("tiny")}
    assert states[2] == 30 and states[1] == 50


def test_invalid_version_keeps_the_old_one(tmp_path, save_tiny, serve, channel_to):
    base = tmp_path / "tiny"
    save_tiny(base / "1", 1.0)
    server = serve(base, file_system_poll_wait_seconds=0.05)
    (base / "2").mkdir()
    (base / "2/saved_model.pb").write_bytes(b"half a model")
    wait_until(lambda: len(server._core.models.status("tiny")) == 2)
    models = model_service_pb2_grpc.ModelServiceStub(channel_to(server))
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "tiny"

    def failed():
        newest = models.GetModelStatus(status, timeout=30).model_version_status[0]
        return newest.state == 50 and "cannot be loaded" in newest.status.error_message

    wait_until(failed)
    assert server.models() == {"tiny": [1]}
    save_tiny(tmp_path / "whole", 2.0)
    shutil.copytree(tmp_path / "whole", base / "2", dirs_exist_ok=True)  # repaired in place
    wait_until(lambda: server.models() == {"tiny": [2]})


CONFIG = """
model_config_list {{
  config {{
    name: "a" base_path: "{base}" model_platform: "tensorflow"
    model_version_policy {{ {policy} }}
    {labels}
  }}
  {more}
}}
"""


def label(name, version):
    return f'version_labels {{ key: "{name}" value: {version} }}'


def test_version_policies_and_labels(tmp_path, save_tiny, serve, channel_to):
    base, config = tmp_path / "many", tmp_path / "models.config"
    for version in (1, 2, 3):
        save_tiny(base / str(version), float(version))

    def text(policy, labels="", more=""):
        return CONFIG.format(base=base, policy=policy, labels=labels, more=more)

    config.write_text(text("specific { versions: 1 versions: 3 }", label("stable", 1)))
    server = serve(
        model_config_file=str(config),
        file_system_poll_wait_seconds=0.05,
    )
    channel = channel_to(server)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert server.models() == {"a": [3, 1]}
    assert factor(stub, model="a") == 3 and factor(stub, model="a", version=1) == 1
    assert factor(stub, model="a", label="stable") == 1
    rest = http_call(
        server,
        "POST",
        "/v1/models/a/labels/stable:predict",
        {"inputs": {"x": [[1]], "by": [1]}},
    )
    assert rest[1]["outputs"]["y"] == [[1]]
    assert fails(stub.Predict, scale_request(model="a", version=2))[0] == "NOT_FOUND"

    # A new configuration by request; a label of a version that is not loaded is rejected and not
    # changed.
    models = model_service_pb2_grpc.ModelServiceStub(channel)

    def reload(content):
        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(content, request.config)
        return models.HandleReloadConfigRequest(request, timeout=60).status

    assert reload(text("latest { num_versions: 2 }", label("stable", 3))).error_code == 0
    assert server.models() == {"a": [3, 2]}
    assert factor(stub, model="a", label="stable") == 3
    more = f'config {{ name: "b" base_path: "{base}" model_platform: "tensorflow" }}'
    assert reload(text("all {}", label("stable", 1), more)).error_code == 0
    assert server.models() == {"a": [3, 2, 1], "b": [3]}
    assert factor(stub, model="a", label="stable") == 1
    status = reload(text("all {}", label("stable", 9)))
    assert status.error_code == 9 and "label 'stable' refers to version 9" in status.error_message
    assert factor(stub, model="a", label="stable") == 1
    assert reload("custom_model_config {}").error_code == 3
    status = reload(text("all {}", more=more.replace(str(base), str(tmp_path / "none"))))
    assert status.error_code == 9 and "model 'b'" in status.error_message
    assert reload(text("all {}")).error_code == 0
    assert server.models() == {"a": [3, 2, 1]}
    assert fails(stub.Predict, scale_request(model="b"))[0] == "NOT_FOUND"


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
    answer = post(server, {"inputs": {"x": [[1]], "by": [1]}})
    assert answer == (200, {"outputs": {"y": [[1]], "rows": [2]}})  # padded to two rows
    assert post(server, {"inputs": {"x": [[1]] * 5, "by": [1]}})[0] == 400
    path.write_text("allowed_batch_sizes: 2 allowed_batch_sizes: 4")
    with pytest.raises(InputError, match="allowed_batch_sizes"):
        serve(tiny_base, enable_batching=True, batching_parameters_file=str(path))


# The process


@pytest.fixture
def started(tiny_base):
    """Function that starts `keras-llm serve` with flags; returns the process and its two ports."""
    processes = []

    def start(*flags):
        command = [sys.executable, "-m", "keras_llm", "serve", str(tiny_base), "--port", "0"]
        command += ["--rest_api_port", "-1", *flags]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "gRPC at" in line:
                break
        assert any("serving tiny, version 1" in line for line in lines)
        return process, *map(int, re.findall(r"127\.0\.0\.1:(\d+)", lines[-1]))

    yield start
    for process in processes:
        process.kill()
        process.stderr.close()
        process.wait()


def spin(channel, times):
    """Start a long request, which is running on the server when this returns."""
    request = predict_request(signature="spin", times=np.array([times], "int32"))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    pending = stub.Predict.future(request, timeout=60)
    time.sleep(0.3)
    assert not pending.done()
    return pending


def test_sigterm_finishes_running_requests(started):
    process, port, _ = started("--shutdown_grace_seconds", "20")
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tensorflow.serving.PredictionService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(request, timeout=30).status == 1
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == 1
        pending = spin(channel, 600_000)
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == 2  # NOT_SERVING
        count = tf.make_ndarray(pending.result().outputs["count"])
        assert count.tolist() == [600_000]
    assert process.wait(timeout=30) == 0


def test_requests_are_aborted_after_the_grace_period(started):
    process, port, rest_api_port = started("--shutdown_grace_seconds", "0.2")
    rest = f"http://localhost:{rest_api_port}"
    with (
        grpc.insecure_channel(f"localhost:{port}") as channel,
        export.Client(rest, "tiny", retries=0) as client,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        rest_request = pool.submit(client.predict, "spin", {"times": [2**31 - 1]})
        pending = spin(channel, 2**31 - 1)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            rest_request.result(timeout=30)
        with pytest.raises(grpc.RpcError) as refused:
            pending.result()
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert process.wait(timeout=30) == 1
    assert "are aborted" in process.stderr.read()


def test_command_reports_invalid_arguments(capfd):
    from keras_llm import cli

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
