"""Test Classify and Regress, warm-up requests and metrics of the local server."""

import pathlib
import runpy
import types

import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_llm.errors import InputError

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))


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
    rest = calls.post(example_server, {"examples": [{"x": 0.25}]}, "old", "classify")
    assert rest == (200, {"results": [[["yes", 0.25], ["no", 0.75]]]})
    body = {"signature_name": "twice", "examples": [{}], "context": {"x": [2.0]}}
    assert calls.post(example_server, body, "old", "regress") == (200, {"results": [4.0]})
    large = {"examples": [{}] * 10_000, "context": {"x": [0.5] * 100_000}}
    status, answer = calls.post(example_server, large, "old", "classify")
    assert status == 400 and "the context takes 4000" in answer["error"]
    for wrong in ({"examples": []}, {"examples": [1]}, {"examples": [{"x": [1, "a"]}]}, {"x": 1}):
        assert calls.post(example_server, wrong, "old", "classify")[0] == 400
    assert calls.post(example_server, {"examples": [{"x": 1}]}, "old", "regress")[0] == 400
    assert calls.fails(stub.Regress, regression_pb2.RegressionRequest())[0] == "INVALID_ARGUMENT"


def write_warmup(folder, *requests):
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra/tf_serving_warmup_requests")) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


def test_warmup_requests_run_before_serving(tmp_path, save_tiny, serve):
    save_tiny(tmp_path / "m/1", 1.0)
    write_warmup(
        tmp_path / "m/1",
        calls.scale_request(),
        calls.predict_request(signature="upper", text=["a"]),
    )
    serve(tmp_path / "m")
    save_tiny(tmp_path / "bad/1", 1.0)
    write_warmup(tmp_path / "bad/1", calls.scale_request(), calls.scale_request(by=-1.0))
    with pytest.raises(InputError, match="warm-up request 2: by must not be negative"):
        serve(tmp_path / "bad")
    serve(tmp_path / "bad", enable_model_warmup=False)
    (tmp_path / "bad/1/assets.extra/tf_serving_warmup_requests").write_bytes(b"no records" * 9)
    with pytest.raises(InputError, match="tf_serving_warmup_requests cannot be read"):
        serve(tmp_path / "bad")


def test_metrics(serve, tiny_base, channel_to):
    server = serve(tiny_base, enable_batching=True)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    stub.Predict(calls.scale_request(), timeout=30)
    calls.post(server, {"inputs": {"x": [[1]], "by": [-1]}})
    for i in range(3):
        calls.post(server, {}, f"unknown{i}")
    status, page = calls.http_call(server, "GET", "/monitoring/prometheus/metrics")
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
