"""Read the configuration files of `tensorflow_model_server`, which are text protos."""

import pathlib
from collections.abc import Sequence
from typing import Any

from google.protobuf import text_format

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import wire
from keras_llm.export.serving.server.batching import BatchingParameters
from keras_llm.export.serving.server.models import ModelConfig
from keras_llm.files import read_utf8
from keras_llm.types import PathLike


def read_model_config(path: PathLike) -> list[ModelConfig]:
    """Read a `--model_config_file` and return a list of `ModelConfig`."""
    from tensorflow_serving.config import model_server_config_pb2

    return model_configs(_parse(path, model_server_config_pb2.ModelServerConfig()))


def check_base_paths(configs: Sequence[ModelConfig], allowed: Sequence[PathLike]) -> None:
    """Raise ServingError unless each base path is one of the allowed folders or inside one."""
    if not allowed:
        raise ServingError(
            "PERMISSION_DENIED",
            "HandleReloadConfigRequest is disabled; start the server with `--reload_base_paths`.",
        )
    folders = [pathlib.Path(folder).resolve() for folder in allowed]
    for config in configs:
        try:
            path = pathlib.Path(config.base_path).resolve()
        except (OSError, ValueError, RuntimeError):  # too long, a null character or a cycle
            path = None
        if path is None or not any(path.is_relative_to(folder) for folder in folders):
            raise ServingError(
                "PERMISSION_DENIED",
                f"model {config.name!r}: `base_path` must be in a folder of `--reload_base_paths`.",
            )


def model_configs(config: Any) -> list[ModelConfig]:
    """Convert a `ModelServerConfig` message to a list of `ModelConfig`.

    Raises:
        InputError: if a field is invalid or not supported.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise InputError("`custom_model_config` is not supported; use `model_config_list`.")
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
                raise InputError(f"model {model.name!r}: `specific` must list versions.")
        configs.append(
            ModelConfig(model.name, model.base_path, latest, specific, dict(model.version_labels))
        )
    return configs


def read_batching_parameters(path: PathLike) -> BatchingParameters:
    """Read a `--batching_parameters_file` and return `BatchingParameters`."""
    message = _parse(path, wire.message("tensorflow.serving.BatchingParameters")())
    # Ignore `pad_variable_length_inputs`: requests with different inner shapes are not batched.
    numbers = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches")
    fields = {
        name: getattr(message, name).value
        for name in (*numbers, "num_batch_threads")
        if message.HasField(name)
    }
    try:
        return BatchingParameters(**fields, allowed_batch_sizes=tuple(message.allowed_batch_sizes))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_ssl(path: PathLike) -> Any:
    """Read an `--ssl_config_file`; return an `SSLConfig` with the text of keys and certificates."""
    message = _parse(path, wire.message("tensorflow.serving.SSLConfig")())
    if not (message.server_key and message.server_cert):
        raise InputError(f"{path}: `server_key` and `server_cert` are required.")
    if message.client_verify and not message.custom_ca:
        raise InputError(f"{path}: `client_verify` requires `custom_ca`.")
    return message


def _parse(path, message):
    try:
        return text_format.Parse(read_utf8(pathlib.Path(path)), message)
    except text_format.ParseError as error:
        raise InputError(f"{path}: {error}") from None
