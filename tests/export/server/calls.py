"""Send requests to a local server, with gRPC stubs and plain HTTP."""

import contextlib
import http.client
import json
import socket
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    predict_pb2,
)


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


X, BY = np.ones((1, 1), "float32"), np.ones(1, "float32")


def raw(server, text):
    """Send bytes over a new connection and return what the server sends until it closes."""
    with socket.create_connection(("localhost", server.rest_api_port), timeout=10) as connection:
        connection.sendall(text)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


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


def factor(stub, **spec):
    return tf.make_ndarray(stub.Predict(scale_request(**spec), timeout=30).outputs["y"]).item()
