"""The configuration files of `tensorflow_model_server`, text protos all of them."""

import pathlib

from google.protobuf import text_format

from keras_llm.errors import InputError
from keras_llm.export.serving import wire
from keras_llm.export.serving.server.batching import BatchingParameters
from keras_llm.export.serving.server.models import ModelConfig
from keras_llm.files import read_utf8


def read_model_config(path):
    """The models of a `--model_config_file`, a list of `ModelConfig`."""
    from tensorflow_serving.config import model_server_config_pb2

    return model_configs(_parse(path, model_server_config_pb2.ModelServerConfig()))


def model_configs(config):
    """A `ModelServerConfig` message -> list of `ModelConfig`.

    Raises:
        InputError: naming the field that cannot be used.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise InputError("`custom_model_config` is not supported; write a model_config_list.")
    configs = []
    for model in config.model_config_list.config:
        if model.model_platform not in ("", "tensorflow"):
            raise InputError(
                f'model {model.name!r}: `model_platform` must be "tensorflow", '
                f"got {model.model_platform!r}."
            )
        policy = model.model_version_policy
        latest, specific = 1, ()
        kind = policy.WhichOneof("policy_choice")
        if kind == "latest":
            latest = policy.latest.num_versions or 1
        elif kind == "all":
            latest = 0
        elif kind == "specific":
            specific = tuple(policy.specific.versions)
            if not specific:
                raise InputError(f"model {model.name!r}: `specific` names no version.")
        configs.append(
            ModelConfig(model.name, model.base_path, latest, specific, dict(model.version_labels))
        )
    return configs


def read_batching_parameters(path):
    """The `BatchingParameters` of a `--batching_parameters_file`."""
    found = _parse(path, wire.message("tensorflow.serving.BatchingParameters")())
    # `pad_variable_length_inputs` changes nothing: requests of unlike inner shapes are not merged.
    numbers = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches")
    fields = {
        name: getattr(found, name).value
        for name in (*numbers, "num_batch_threads")
        if found.HasField(name)
    }
    try:
        return BatchingParameters(**fields, allowed_batch_sizes=tuple(found.allowed_batch_sizes))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_monitoring(path):
    """The path of the metrics page that a `--monitoring_config_file` sets; None if it is off."""
    found = _parse(path, wire.message("tensorflow.serving.MonitoringConfig")())
    page = found.prometheus_config.path or METRICS_PATH
    return page if found.prometheus_config.enable else None


def read_ssl(path):
    """The `SSLConfig` message of a `--ssl_config_file`; keys and certificates are its texts."""
    found = _parse(path, wire.message("tensorflow.serving.SSLConfig")())
    if not (found.server_key and found.server_cert):
        raise InputError(f"{path}: `server_key` and `server_cert` are needed.")
    if found.client_verify and not found.custom_ca:
        raise InputError(f"{path}: `client_verify` needs `custom_ca`.")
    return found


METRICS_PATH = "/monitoring/prometheus/metrics"


def _parse(path, message):
    try:
        return text_format.Parse(read_utf8(pathlib.Path(path)), message)
    except text_format.ParseError as error:
        raise InputError(f"{path}: {error}") from None
