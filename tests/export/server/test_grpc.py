"""Test the gRPC services of the local server with TensorFlow Serving's stubs."""

import pathlib
import re
import runpy
import time
import types

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))


def test_predict(stub):
    request = calls.predict_request(
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
        calls.predict_request(signature="upper", text=["é".encode(), b"\xffa"]), timeout=30
    )
    assert list(text.outputs["upper"].string_val) == ["é".encode(), b"\xffA"]
    once = stub.Predict(calls.predict_request(signature="once", n=np.array(4, "int32")), timeout=30)
    assert tf.make_ndarray(once.outputs["n"]) == 5 and not once.outputs["n"].tensor_shape.dim


@pytest.mark.parametrize(
    "request_, code, words",
    [
        (calls.predict_request("no", x=calls.X, by=calls.BY), "NOT_FOUND", "no model 'no'"),
        (calls.predict_request("../tiny", x=calls.X, by=calls.BY), "NOT_FOUND", "no model"),
        (
            calls.predict_request("", x=calls.X, by=calls.BY),
            "INVALID_ARGUMENT",
            "does not name a model",
        ),
        (calls.scale_request(version=7), "NOT_FOUND", "version 7"),
        (calls.scale_request(label="stable"), "NOT_FOUND", "label 'stable'"),
        (
            calls.scale_request(signature="nope"),
            "INVALID_ARGUMENT",
            "signature 'nope'; available: once",
        ),
        (calls.predict_request(x=calls.X), "INVALID_ARGUMENT", "missing by"),
        (
            calls.predict_request(x=calls.X, by=calls.BY, z=calls.BY),
            "INVALID_ARGUMENT",
            "unknown z",
        ),
        (
            calls.predict_request(x=calls.X, by=np.ones(1, "int32")),
            "INVALID_ARGUMENT",
            "by must be DT_FLOAT",
        ),
        (
            calls.predict_request(x=["a"], by=calls.BY),
            "INVALID_ARGUMENT",
            "x must be DT_FLOAT, got DT_STRING",
        ),
        (
            calls.predict_request(x=calls.BY, by=calls.BY),
            "INVALID_ARGUMENT",
            r"x must have shape \[\?, \?\]",
        ),
        (calls.scale_request(by=-1.0), "INVALID_ARGUMENT", "^by must not be negative$"),
    ],
)
def test_invalid_request_returns_error_message(stub, request_, code, words):
    found, details = calls.fails(stub.Predict, request_)
    assert found == code and re.search(words, details), (found, details)


def test_unsupported_calls_return_error_codes(stub, channel_to, server):
    request = calls.scale_request()
    request.output_filter.append("nope")
    assert calls.fails(stub.Predict, request)[0] == "INVALID_ARGUMENT"
    assert (
        calls.fails(stub.MultiInference, inference_pb2.MultiInferenceRequest())[0]
        == "UNIMPLEMENTED"
    )
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name = "tiny"
    code, details = calls.fails(stub.Classify, classify)
    assert code == "INVALID_ARGUMENT" and "not tensorflow/serving/classify" in details
    raw = channel_to(server).unary_unary("/tensorflow.serving.PredictionService/Predict")
    code, _ = calls.fails(raw, b"\xff\xff\xff malformed")
    assert code in ("INTERNAL", "INVALID_ARGUMENT")  # gRPC's own error for invalid bytes
    long_name = calls.predict_request("n" * 100_000, x=calls.X, by=calls.BY)
    code, details = calls.fails(stub.Predict, long_name)
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
    assert calls.fails(stub.GetModelMetadata, request)[0] == "INVALID_ARGUMENT"
    models = model_service_pb2_grpc.ModelServiceStub(channel_to(server))
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "tiny"
    (found,) = models.GetModelStatus(status, timeout=30).model_version_status
    assert (found.version, found.state, found.status.error_code) == (1, 30, 0)
    status.model_spec.version.value = 3
    assert calls.fails(models.GetModelStatus, status)[0] == "NOT_FOUND"
    rest_status, shown = calls.http_call(server, "GET", "/v1/models/tiny/versions/1")
    assert rest_status == 200 and shown == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    _, shown = calls.http_call(server, "GET", "/v1/models/tiny/metadata")
    assert shown["model_spec"] == {"name": "tiny", "signature_name": "", "version": "1"}
    spec = shown["metadata"]["signature_def"]["signature_def"]["once"]
    assert spec["inputs"]["n"]["tensor_shape"] == {"dim": [], "unknown_rank": False}
    assert spec["method_name"] == "tensorflow/serving/predict"


def test_deadline_and_text_limit(tiny_base, serve, channel_to):
    server = serve(tiny_base, max_text_bytes=10)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    spin = calls.predict_request(signature="spin", times=np.array([2**31 - 1], "int32"))
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(spin, timeout=0.3)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # The server aborts the graph; it does not only stop waiting.
    calls.wait_until(lambda: server._core.models._versions["tiny"][1].users == 0)
    assert time.monotonic() - begin < 10
    body = {"signature_name": "upper", "instances": ["a" * 5, "b" * 5]}
    assert calls.post(server, body)[0] == 200
    body["instances"].append("c")
    status, answer = calls.post(server, body)
    assert status == 400 and "11 bytes, more than `max_text_bytes` (10)" in answer["error"]
    long_text = calls.predict_request(signature="upper", text=["a" * 11])
    assert calls.fails(stub.Predict, long_text)[0] == "INVALID_ARGUMENT"
    large = np.ones((1, 2**21), "float32")  # 8 MiB, more than gRPC's default limit
    request = calls.predict_request(x=large, by=calls.BY)
    request.output_filter.append("rows")
    assert tf.make_ndarray(stub.Predict(request, timeout=30).outputs["rows"]) == [1]
