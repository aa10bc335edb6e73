"""Write the configuration and deployment files for the TensorFlow Serving Docker image."""

import json
import math
import pathlib
import re

from keras_llm.errors import InputError, optional_packages
from keras_llm.export.report import REPORT_FILE, folder_sizes
from keras_llm.export.serving.versions import version_number
from keras_llm.files import atomic_file
from keras_llm.types import PathLike

_MIB = 2**20
_SERVER_BYTES = 512 * _MIB  # memory of the server, with its threads and buffers
_BATCH_BYTES = 2**30  # maximum memory of a batch
_MOST_ROWS = 32
_METRICS = "/monitoring/prometheus/metrics"


def serving_files(
    folder: PathLike,
    labels: dict[str, dict[str, int]] | None = None,
    image: str = "tensorflow/serving:latest",
    port: int = 8500,
    rest_api_port: int = 8501,
    cpus: int = 2,
    max_batch_size: int | None = None,
) -> dict[str, pathlib.Path]:
    """Write the files that the TensorFlow Serving image needs to serve a folder of models.

    The models are the subfolders with numbered versions, as `export.saved_model` writes them.
    Memory and batch sizes are computed from their reports: the server has memory for two versions
    of each model, the old one and its replacement, and for a batch of rows of maximum length.

    Args:
        folder: str or path of the folder with the models, e.g. "serving".
        labels: dict of model name to a dict of version label to version, e.g.
            `{"stories": {"stable": 1, "canary": 2}}`; these versions are served. For a model
            without labels, the two newest versions are served, the newest with the label "stable".
        image: str. Name of the Docker image.
        port, rest_api_port: int. Ports for gRPC and REST.
        cpus: int > 0. Number of CPUs that the server may use.
        max_batch_size: int > 0. Maximum number of rows in a batch; None for as many as fit in
            1 GiB, at most 32.

    Returns:
        A dict of file name to path: `models.config`, `batching_parameters.txt`,
        `monitoring.config`, `docker-compose.yml` and `kubernetes.yml`. Existing files are replaced.

    Raises:
        InputError: if an argument is invalid or the folder contains no model.
    """
    folder = pathlib.Path(folder)
    models = _models(folder)
    labels = _checked_labels(labels or {}, models)
    for name, value in (("cpus", cpus), ("max_batch_size", max_batch_size)):
        if not (name == "max_batch_size" and value is None) and (
            not isinstance(value, int) or value < 1
        ):
            raise InputError(f"serving_files: `{name}` must be an int > 0, got {value!r}.")
    for name, value in (("port", port), ("rest_api_port", rest_api_port)):
        if not isinstance(value, int) or not 0 < value < 65536 or port == rest_api_port:
            raise InputError(
                f"serving_files: `{name}` must be an int in 1 .. 65535 and differ from the other "
                f"port, got {value!r}."
            )
    if not isinstance(image, str) or not re.fullmatch(r"[\w./:@-]+", image):
        raise InputError(
            f"serving_files: `image` must be the name of a Docker image, got {image!r}."
        )
    rows = max_batch_size or _rows(models)
    numbers = {
        "image": image,
        "port": port,
        "rest_api_port": rest_api_port,
        "cpus": cpus,
        "memory": _memory(models, rows),
        "model": sorted(models)[0],
        "flags": _flags(models, port, rest_api_port),
    }
    config = _models_config(models, labels)
    batching = _batching(models, rows, cpus)
    monitoring = f'prometheus_config {{\n  enable: true\n  path: "{_METRICS}"\n}}\n'
    configs = {
        "models.config": config,
        "batching_parameters.txt": batching,
        "monitoring.config": monitoring,
    }
    texts = {
        **configs,
        "docker-compose.yml": _compose(numbers),
        "kubernetes.yml": _kubernetes(numbers, configs),
    }
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / name
        with atomic_file(paths[name], overwrite=True) as partial:
            partial.write_text(text, "utf-8")
    return paths


def _models(folder):
    """Return a dict from model name to a dict from version to its sizes and settings."""
    models = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir():
            continue
        reports = {}
        if (path / REPORT_FILE).is_file():
            reports = json.loads((path / REPORT_FILE).read_text("utf-8"))
        versions = {
            number: {
                "bytes": folder_sizes(version)["total"],
                "row_bytes": reports.get(version.name, {}).get("row_bytes", 0),
                "seconds": reports.get(version.name, {}).get("seconds_per_request", 0.05),
                "xla": reports.get(version.name, {}).get("xla", False),
            }
            for version in path.iterdir()
            if (number := version_number(version.name)) is not None
            and (version / "saved_model.pb").is_file()
        }
        if versions:
            if not re.fullmatch(r"[\w.-]+", path.name):
                raise InputError(
                    f"{path}: the name of a served model must consist of letters, digits, dots, "
                    "dashes and underscores."
                )
            models[path.name] = versions
    if not models:
        raise InputError(
            f"serving_files: {folder} contains no model; write one with export.saved_model."
        )
    return models


def _checked_labels(labels, models):
    """Check that `labels` maps names of models to labels of existing versions; return it."""
    if not isinstance(labels, dict) or not all(isinstance(v, dict) for v in labels.values()):
        raise InputError(
            "serving_files: `labels` must be a dict of model name to a dict of label to version, "
            f"got {labels!r}."
        )
    for model, row in labels.items():
        for label, version in row.items():
            if model not in models or version not in models[model]:
                raise InputError(
                    f"serving_files: `labels`: there is no version {version!r} of {model!r}."
                )
            if not isinstance(label, str) or not re.fullmatch(r"[\w-]+", label):
                raise InputError(
                    f"serving_files: `labels`: {label!r} is not a valid label; use letters, "
                    "digits, dashes and underscores."
                )
    return labels


def _rows(models):
    """Return the largest power of two of maximum-length rows that fit in memory."""
    largest = max(v["row_bytes"] for versions in models.values() for v in versions.values())
    rows = max(1, min(_MOST_ROWS, _BATCH_BYTES // max(largest, 1)))
    return 1 << (rows.bit_length() - 1)


def _memory(models, rows):
    """Return the MiB of memory for the server, two versions of each model and a batch for each."""
    needed = _SERVER_BYTES
    for versions in models.values():
        needed += 2 * max(v["bytes"] for v in versions.values())
        needed += rows * max(v["row_bytes"] for v in versions.values())
    return math.ceil(needed / _MIB)


def _models_config(models, labels):
    from google.protobuf import text_format

    with optional_packages("export.serving_files"):
        from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    for name, versions in sorted(models.items()):
        row = config.model_config_list.config.add(
            name=name, base_path=f"/models/{name}", model_platform="tensorflow"
        )
        model_labels = labels.get(name)
        if model_labels:
            row.model_version_policy.specific.versions.extend(sorted(set(model_labels.values())))
        else:
            row.model_version_policy.latest.num_versions = 2
        for label, version in sorted((model_labels or {"stable": max(versions)}).items()):
            row.version_labels[label] = version
    return text_format.MessageToString(config)


def _batching(models, rows, cpus):
    """Return a `BatchingParameters` message as text.

    A request waits for others for a tenth of the duration of a request.
    """
    seconds = min(v["seconds"] for versions in models.values() for v in versions.values())
    wait = int(min(max(seconds * 1e5, 1000), 20000))
    return (
        f"max_batch_size {{ value: {rows} }}\n"
        f"batch_timeout_micros {{ value: {wait} }}\n"
        "max_enqueued_batches { value: 100 }\n"
        f"num_batch_threads {{ value: {cpus} }}\n"
        "pad_variable_length_inputs: true\n"
    )


def _flags(models, port, rest_api_port):
    flags = {
        "port": port,
        "rest_api_port": rest_api_port,
        "model_config_file": "{configs}/models.config",
        "model_config_file_poll_wait_seconds": 30,
        "allow_version_labels_for_unavailable_models": "true",
        "monitoring_config_file": "{configs}/monitoring.config",
        "enable_batching": "true",
        "batching_parameters_file": "{configs}/batching_parameters.txt",
    }
    if any(v["xla"] for versions in models.values() for v in versions.values()):
        flags["xla_cpu_compilation_enabled"] = "true"
    return [f"--{name}={value}" for name, value in flags.items()]


def _listed(flags, configs, indent):
    return "\n".join(f'{" " * indent}- "{flag.format(configs=configs)}"' for flag in flags)


def _compose(numbers):
    return f"""\
# Run from this folder: docker compose up
services:
  tensorflow-serving:
    image: "{numbers["image"]}"
    command:
{_listed(numbers["flags"], "/models", 6)}
    ports:
      - "{numbers["port"]}:{numbers["port"]}"
      - "{numbers["rest_api_port"]}:{numbers["rest_api_port"]}"
    volumes:
      - ".:/models:ro"
    deploy:
      resources:
        limits:
          cpus: "{numbers["cpus"]}"
          memory: "{numbers["memory"]}M"
    restart: unless-stopped
    stop_grace_period: 30s
"""


def _kubernetes(numbers, configs):
    data = "".join(
        f"  {name}: |\n" + "".join(f"    {line}\n" for line in text.splitlines())
        for name, text in configs.items()
    )
    return f"""\
# The volume claim "models" must contain this folder, with one subfolder for each model.
apiVersion: v1
kind: ConfigMap
metadata:
  name: tensorflow-serving
data:
{data}---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tensorflow-serving
spec:
  replicas: 1
  selector:
    matchLabels:
      app: tensorflow-serving
  template:
    metadata:
      labels:
        app: tensorflow-serving
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "{numbers["rest_api_port"]}"
        prometheus.io/path: "{_METRICS}"
    spec:
      terminationGracePeriodSeconds: 30
      containers:
        - name: tensorflow-serving
          image: "{numbers["image"]}"
          args:
{_listed(numbers["flags"], "/config", 12)}
          ports:
            - name: grpc
              containerPort: {numbers["port"]}
            - name: rest
              containerPort: {numbers["rest_api_port"]}
          readinessProbe:
            httpGet:
              path: /v1/models/{numbers["model"]}
              port: rest
            periodSeconds: 5
          startupProbe:
            tcpSocket:
              port: grpc
            periodSeconds: 5
            failureThreshold: 120
          livenessProbe:
            tcpSocket:
              port: grpc
            periodSeconds: 30
          resources:
            requests:
              cpu: "{numbers["cpus"]}"
              memory: "{numbers["memory"]}Mi"
            limits:
              memory: "{numbers["memory"]}Mi"
          volumeMounts:
            - name: models
              mountPath: /models
              readOnly: true
            - name: config
              mountPath: /config
              readOnly: true
      volumes:
        - name: models
          persistentVolumeClaim:
            claimName: models
            readOnly: true
        - name: config
          configMap:
            name: tensorflow-serving
---
apiVersion: v1
kind: Service
metadata:
  name: tensorflow-serving
spec:
  selector:
    app: tensorflow-serving
  ports:
    - name: grpc
      port: {numbers["port"]}
      targetPort: grpc
    - name: rest
      port: {numbers["rest_api_port"]}
      targetPort: rest
"""
