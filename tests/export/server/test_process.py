"""Test `keras-llm serve` in a process that is terminated."""

import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time
import types
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    prediction_service_pb2_grpc,
)

from keras_llm import export
from keras_llm.errors import ServingError

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))


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
    request = calls.predict_request(signature="spin", times=np.array([times], "int32"))
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
