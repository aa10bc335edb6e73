"""Test how the local server loads, changes and unloads versions of models."""

import pathlib
import runpy
import shutil
import threading
import types

import grpc
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from keras_llm import export

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))


def test_version_changes_do_not_fail_requests(tmp_path, save_tiny, serve, channel_to):
    base = tmp_path / "tiny"
    save_tiny(base / "1", 1.0)
    server = serve(base, file_system_poll_wait_seconds=0.05, enable_batching=True)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    seen, failed, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                seen.append(calls.factor(stub))
            except grpc.RpcError as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        calls.wait_until(lambda: len(seen) > 20)
        for version in (2, 3):
            save_tiny(base / str(version), float(version))
            calls.wait_until(lambda v=version: server.models() == {"tiny": [v]})
        shutil.rmtree(base / "3")  # the newest remaining version is served again
        calls.wait_until(lambda: server.models() == {"tiny": [2]})
        count = len(seen)
        calls.wait_until(lambda: len(seen) > count + 20)
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
    calls.wait_until(lambda: len(server._core.models.status("tiny")) == 2)
    models = model_service_pb2_grpc.ModelServiceStub(channel_to(server))
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "tiny"

    def failed():
        newest = models.GetModelStatus(status, timeout=30).model_version_status[0]
        return newest.state == 50 and "cannot be loaded" in newest.status.error_message

    calls.wait_until(failed)
    assert server.models() == {"tiny": [1]}
    save_tiny(tmp_path / "whole", 2.0)
    shutil.copytree(tmp_path / "whole", base / "2", dirs_exist_ok=True)  # repaired in place
    calls.wait_until(lambda: server.models() == {"tiny": [2]})


def test_folders_that_are_not_64_bit_versions_are_ignored(tmp_path, save_tiny, serve, channel_to):
    base = tmp_path / "tiny"
    save_tiny(base / "1", 1.0)
    server = serve(base, file_system_poll_wait_seconds=0)
    for name in (2**63, 20261129233000123456, "9" * 200, "1.5", "-1", "²", "latest"):
        shutil.copytree(base / "1", base / str(name))
    server._core.models.refresh()
    assert server.models() == {"tiny": [1]}
    shutil.copytree(base / "1", base / str(2**63 - 1))
    server._core.models.refresh()
    assert server.models() == {"tiny": [2**63 - 1]}
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    assert stub.Predict(calls.scale_request(), timeout=30).model_spec.version.value == 2**63 - 1
    status, answer = calls.http_call(server, "GET", "/v1/models")
    states = answer["models"][0]["model_version_status"]
    assert status == 200 and [row["version"] for row in states] == [str(2**63 - 1), "1"]
    with export.Client(f"localhost:{server.port}", "tiny") as client:
        assert [row["version"] for row in client.status()] == [2**63 - 1, 1]


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
        reload_base_paths=(str(tmp_path),),
    )
    channel = channel_to(server)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert server.models() == {"a": [3, 1]}
    assert calls.factor(stub, model="a") == 3 and calls.factor(stub, model="a", version=1) == 1
    assert calls.factor(stub, model="a", label="stable") == 1
    rest = calls.http_call(
        server,
        "POST",
        "/v1/models/a/labels/stable:predict",
        {"inputs": {"x": [[1]], "by": [1]}},
    )
    assert rest[1]["outputs"]["y"] == [[1]]
    assert calls.fails(stub.Predict, calls.scale_request(model="a", version=2))[0] == "NOT_FOUND"

    # A new configuration by request; a label of a version that is not loaded is rejected and not
    # changed.
    models = model_service_pb2_grpc.ModelServiceStub(channel)

    def reload(content):
        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(content, request.config)
        return models.HandleReloadConfigRequest(request, timeout=60).status

    assert reload(text("latest { num_versions: 2 }", label("stable", 3))).error_code == 0
    assert server.models() == {"a": [3, 2]}
    assert calls.factor(stub, model="a", label="stable") == 3
    more = f'config {{ name: "b" base_path: "{base}" model_platform: "tensorflow" }}'
    assert reload(text("all {}", label("stable", 1), more)).error_code == 0
    assert server.models() == {"a": [3, 2, 1], "b": [3]}
    assert calls.factor(stub, model="a", label="stable") == 1
    status = reload(text("all {}", label("stable", 9)))
    assert status.error_code == 9 and "label 'stable' refers to version 9" in status.error_message
    assert calls.factor(stub, model="a", label="stable") == 1
    assert reload("custom_model_config {}").error_code == 3
    status = reload(text("all {}", more=more.replace(str(base), str(tmp_path / "none"))))
    assert status.error_code == 9 and "model 'b'" in status.error_message
    assert reload(text("all {}")).error_code == 0
    assert server.models() == {"a": [3, 2, 1]}
    assert calls.fails(stub.Predict, calls.scale_request(model="b"))[0] == "NOT_FOUND"


def test_only_models_of_allowed_folders_can_be_loaded_by_request(
    tmp_path, save_tiny, serve, channel_to
):
    save_tiny(tmp_path / "allowed/tiny/1", 1.0)
    save_tiny(tmp_path / "other/tiny/1", 2.0)
    (tmp_path / "allowed/link").symlink_to(tmp_path / "other/tiny")

    def reload(server, base):
        request = model_management_pb2.ReloadConfigRequest()
        added = request.config.model_config_list.config.add(
            name="tiny", model_platform="tensorflow"
        )
        added.base_path = str(base)
        models = model_service_pb2_grpc.ModelServiceStub(channel_to(server))
        return models.HandleReloadConfigRequest(request, timeout=60).status

    base = tmp_path / "allowed/tiny"
    closed = serve(base)
    status = reload(closed, base)
    assert status.error_code == 7 and "--reload_base_paths" in status.error_message
    server = serve(base, reload_base_paths=(str(tmp_path / "allowed"), str(tmp_path / "third")))
    for path in (
        tmp_path / "other/tiny",
        tmp_path / "allowed/../other/tiny",
        tmp_path / "allowed/link",
        tmp_path / "allowed-too",
        tmp_path,
        "/",
        "",
        "/" + "a" * 5000,
        f"{base}\0",
    ):
        status = reload(server, path)
        assert status.error_code == 7 and "`base_path`" in status.error_message, path
    server._core.models.refresh()
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
    assert calls.factor(stub) == 1
    assert reload(server, base / "../tiny").error_code == 0
    save_tiny(tmp_path / "third/1", 3.0)
    assert reload(server, tmp_path / "third").error_code == 0
    assert calls.factor(stub) == 3
