"""Test that the files for TensorFlow Serving parse and agree with the models."""

import pathlib
import shutil
import threading
import time

import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

import keras_llm
from keras_llm import export, models, tokenizers
from keras_llm.errors import InputError
from keras_llm.export.saved_model.warmup import read_warmup
from keras_llm.export.serving.server.files import read_batching_parameters


@pytest.fixture(scope="module")
def served(text_folder, tmp_path_factory):
    """Export two versions of a model while a thread watches the folder like a server."""
    texts = [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]
    tok = tokenizers.SentencePiece.train(texts, 400, "bpe")
    sizes = {"vocabulary_size": 400, "num_layers": 1}
    config = models.preset("bert-tiny", **sizes, initializer_range=0.3)
    task = keras_llm.TextClassification(models.text_classifier(config, 2), tok, ["yes", "no"])
    folder = tmp_path_factory.mktemp("served")
    observed, stop = [], threading.Event()

    def watch():  # like the server, which treats names that are integers as versions
        while not stop.is_set():
            for path in (folder / "answers").glob("*"):
                if path.name.isdigit():
                    observed.append(
                        (path.name, sorted(str(p.relative_to(path)) for p in path.rglob("*")))
                    )
            time.sleep(0.001)  # leaves the processor to the export

    watcher = threading.Thread(target=watch)
    watcher.start()
    reports = [
        export.saved_model(task, folder / "answers", version=1),
        export.saved_model(task, folder / "answers", version=2, weights="int8"),
    ]
    stop.set()
    watcher.join()
    return folder, reports, observed


def server_message(name, **fields):
    """Return a message class instance, for messages that no Python package has."""
    kinds = {"int64": 3, "string": 9, "bool": 8, "int64s": 3}
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto",
        package="served",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    row = file.message_type.add(name=name)
    for number, (field, kind) in fields.items():
        number = int(number.removeprefix("_"))
        label = 3 if kind == "int64s" else 1
        if "." in kind:
            row.field.add(name=field, number=number, label=label, type=11, type_name=kind)
        else:
            row.field.add(name=field, number=number, label=label, type=kinds[kind])
    pool = descriptor_pool.DescriptorPool()
    from google.protobuf import wrappers_pb2

    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"served.{name}"))()


def parse_batching_parameters(text):
    number = ".google.protobuf.Int64Value"
    # tensorflow_serving/servables/tensorflow/session_bundle_config.proto
    parsed = server_message(
        "BatchingParameters",
        _1=("max_batch_size", number),
        _2=("batch_timeout_micros", number),
        _3=("max_enqueued_batches", number),
        _4=("num_batch_threads", number),
        _5=("thread_pool_name", ".google.protobuf.StringValue"),
        _6=("allowed_batch_sizes", "int64s"),
        _7=("pad_variable_length_inputs", "bool"),
    )
    return text_format.Parse(text, parsed)


def parse_flags(arguments):
    assert all(argument.startswith("--") for argument in arguments)
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def test_versions_appear_complete(served):
    folder, _, observed = served
    expected = {
        version: sorted(str(p.relative_to(path)) for p in path.rglob("*"))
        for version in ("1", "2")
        for path in [folder / "answers" / version]
    }
    assert {version for version, _ in observed} <= {"1", "2"} and len(observed) > 100
    assert all(files == expected[version] for version, files in observed)
    assert sorted(path.name for path in (folder / "answers").iterdir()) == [
        "1",
        "2",
        "export_report.json",
    ]


def test_warmup_requests_run(served):
    folder, _, _ = served
    (request,) = read_warmup(folder / "answers" / "1")
    assert request.model_spec.name == "answers"
    signature = request.model_spec.signature_name
    function = tf.saved_model.load(str(folder / "answers" / "1")).signatures[signature]
    inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
    assert {tensor.shape[0] for tensor in inputs.values()} == {1}
    assert function(**inputs)["label"].numpy()[0] in (b"yes", b"no")


def test_int8_weights_are_smaller(served):
    _, (first, second), _ = served
    assert second["weights"] == "int8" and first["weights"] == "as in the model"
    large = first["bytes_by_part"]["weights"]
    assert second["bytes_by_part"]["weights"] < 0.35 * large
    assert sum(second["bytes_by_part"].values()) == second["bytes"]["total"]
    assert second["parity"]["mean_kl_divergence_nats"] < 0.05


def test_files_parse_and_agree(served):
    folder, (report, _), _ = served
    paths = export.serving_files(folder, cpus=3)
    assert sorted(paths) == [
        "batching_parameters.txt",
        "docker-compose.yml",
        "kubernetes.yml",
        "models.config",
        "monitoring.config",
    ]
    texts = {name: pathlib.Path(path).read_text("utf-8") for name, path in paths.items()}

    config = text_format.Parse(texts["models.config"], model_server_config_pb2.ModelServerConfig())
    (row,) = config.model_config_list.config
    assert (row.name, row.base_path, row.model_platform) == (
        "answers",
        "/models/answers",
        "tensorflow",
    )
    assert dict(row.version_labels) == {"stable": 2}
    assert row.model_version_policy.latest.num_versions == 2

    parameters = parse_batching_parameters(texts["batching_parameters.txt"])
    read = read_batching_parameters(paths["batching_parameters.txt"])  # local server's parser
    assert read.max_batch_size == parameters.max_batch_size.value
    assert parameters.max_batch_size.value == 32 and parameters.num_batch_threads.value == 3
    assert 1000 <= parameters.batch_timeout_micros.value <= 20000

    # tensorflow_serving/config/monitoring_config.proto
    assert texts["monitoring.config"].startswith("prometheus_config {\n  enable: true\n  path:")
    prometheus = texts["monitoring.config"].partition("{")[2].rpartition("}")[0]
    parsed = server_message("PrometheusConfig", _1=("enable", "bool"), _2=("path", "string"))
    parsed = text_format.Parse(prometheus, parsed)
    assert parsed.enable and parsed.path.startswith("/")

    service = yaml.safe_load(texts["docker-compose.yml"])["services"]["tensorflow-serving"]
    flags = parse_flags(service["command"])
    for flag, name in (
        ("model_config_file", "models.config"),
        ("monitoring_config_file", "monitoring.config"),
        ("batching_parameters_file", "batching_parameters.txt"),
    ):
        assert flags[flag] == f"/models/{name}"
    assert service["ports"] == ["8500:8500", "8501:8501"]
    assert service["volumes"] == [".:/models:ro"]
    assert "xla_cpu_compilation_enabled" not in flags
    limits = service["deploy"]["resources"]["limits"]
    megabytes = int(limits["memory"].removesuffix("M"))
    needed = 2 * report["bytes"]["total"] + 32 * report["row_bytes"]
    assert megabytes >= 512 + needed / 2**20 and limits["cpus"] == "3"

    maps, deployment, service = yaml.safe_load_all(texts["kubernetes.yml"])
    assert maps["data"] == {
        name: texts[name]
        for name in ("models.config", "batching_parameters.txt", "monitoring.config")
    }
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert parse_flags(container["args"])["model_config_file"] == "/config/models.config"
    assert container["resources"]["limits"]["memory"] == f"{megabytes}Mi"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/models/answers"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {v["name"] for v in deployment["spec"]["template"]["spec"]["volumes"]}
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {p["targetPort"]: p["port"] for p in service["spec"]["ports"]} == ports


def test_folders_that_are_not_64_bit_versions_are_ignored(served):
    folder, _, _ = served
    for name in ("9" * 20, "²", "latest"):
        shutil.copytree(folder / "answers/1", folder / "answers" / name)
    try:
        text = export.serving_files(folder)["models.config"].read_text("utf-8")
    finally:
        for name in ("9" * 20, "²", "latest"):
            shutil.rmtree(folder / "answers" / name)
    assert 'key: "stable"' in text and "value: 2" in text


def test_labels_select_versions(served):
    folder, _, _ = served
    labels = {"answers": {"stable": 1, "canary": 2}}
    paths = export.serving_files(folder, labels, max_batch_size=4)
    config = text_format.Parse(
        paths["models.config"].read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (row,) = config.model_config_list.config
    assert dict(row.version_labels) == {"stable": 1, "canary": 2}
    assert list(row.model_version_policy.specific.versions) == [1, 2]
    assert (
        parse_batching_parameters(paths["batching_parameters.txt"].read_text()).max_batch_size.value
        == 4
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": {"answers": {"stable": 9}}}, "no version 9 of 'answers'"),
        ({"labels": {"others": {"stable": 1}}}, "no version 1 of 'others'"),
        ({"labels": {"answers": {"a b": 1}}}, "'a b' is not a valid label"),
        ({"labels": {"answers": 1}}, "`labels` must be a dict"),
        ({"cpus": 0}, "`cpus`"),
        ({"max_batch_size": 0}, "`max_batch_size`"),
        ({"port": 0}, "`port`"),
        ({"rest_api_port": 8500}, "differ from the other port"),
        ({"image": 'x" evil'}, "`image`"),
    ],
)
def test_invalid_arguments_raise_error(served, arguments, message):
    with pytest.raises(InputError, match=message):
        export.serving_files(served[0], **arguments)


def test_folder_without_models_raises_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="contains no model"):
            export.serving_files(folder)
