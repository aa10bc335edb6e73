"""Start the gRPC and REST servers from flags, and shut them down gracefully."""

import os
import pathlib
import socket
import time
from concurrent import futures
from typing import Self

import grpc
import tensorflow as tf
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving.server import files, grpc_services
from keras_llm.export.serving.server.app import create_app
from keras_llm.export.serving.server.batching import BatchingParameters
from keras_llm.export.serving.server.core import Core
from keras_llm.export.serving.server.http_server import HTTPServer
from keras_llm.export.serving.server.message_timeout import MessageTimeout
from keras_llm.export.serving.server.models import ModelConfig, check_base_path
from keras_llm.export.serving.server.options import ServerOptions, bracketed

_SERVICES = (
    health.OVERALL_HEALTH,
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
)
_MESSAGE_SECONDS = 60  # maximum time for the message of a gRPC call to arrive
_GRPC_THREADS = max(16, 4 * (os.cpu_count() or 1))
_GRPC_OPTIONS = [
    ("grpc.so_reuseport", 0),  # prevent two servers from sharing a port by accident
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Close connections that do not start as HTTP/2, that have no calls, and whose client vanished.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class LocalServer:
    """A server in this process with TensorFlow Serving's protocol.

    Args:
        options: `ServerOptions`.

    Attributes:
        port: int. gRPC port.
        rest_api_port: int. HTTP port; 0 if REST is disabled.

    Raises:
        InputError: if a flag, file or model is invalid; the server is then not started.

    Example:
        with LocalServer(ServerOptions("serving/stories", port=0)) as server:
            client = export.Client(f"localhost:{server.port}", model="stories")
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        models = _models(options)
        _check_options(options)
        credentials = _credentials(options.ssl_config_file)
        self._core = Core(
            _batching(options),
            tf.compat.v1.ConfigProto(
                intra_op_parallelism_threads=options.tensorflow_intra_op_parallelism,
                inter_op_parallelism_threads=options.tensorflow_inter_op_parallelism,
            ),
            options.enable_model_warmup,
            options.max_text_bytes,
            options.max_texts,
        )
        self._is_closed = False
        self._grpc = self._rest = None
        self._message_timeout = MessageTimeout(_MESSAGE_SECONDS)
        self.rest_api_port = 0
        try:
            try:
                self._core.models.configure(models)
            except ServingError as error:
                raise InputError(error.message) from None
            self._health = health.HealthServicer()
            self._grpc = self._start_grpc(credentials)
            if options.rest_api_port:
                self._start_rest()
        except BaseException:
            self.close(grace=0)
            raise
        if options.file_system_poll_wait_seconds:
            self._core.models.watch(options.file_system_poll_wait_seconds)
        for service in _SERVICES:
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def models(self) -> dict[str, list[int]]:
        """Return a dict from the name of each model to its loaded versions, newest first."""
        return {
            name: [row[0] for row in self._core.models.status(name) if row[1] == 30]
            for name in self._core.models.names()
        }

    def close(self, grace: float | None = None) -> bool:
        """Shut down: report NOT_SERVING, reject new requests, finish running ones, free everything.

        Args:
            grace: maximum seconds to wait for running requests; defaults to
                `shutdown_grace_seconds`.

        Returns:
            Whether all requests were finished in that time. Unfinished requests are aborted, except
            for those in a graph compiled by XLA, which continue to run.
        """
        if self._is_closed:
            return True
        self._is_closed = True
        grace = self._options.shutdown_grace_seconds if grace is None else grace
        end = time.monotonic() + grace
        self._core.start_grace_period(end)
        if self._grpc is not None:
            self._health.enter_graceful_shutdown()
            stopped = self._grpc.stop(grace)
            if self._rest is not None:
                self._rest.close(grace)
            stopped.wait()
        self._message_timeout.close()
        return self._core.close(max(1.0, end - time.monotonic()))

    def _start_grpc(self, credentials):
        options = self._options
        server = grpc.server(
            futures.ThreadPoolExecutor(_GRPC_THREADS, thread_name_prefix="grpc"),
            interceptors=[self._message_timeout],
            options=_GRPC_OPTIONS,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            grpc_services.PredictionService(self._core), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            grpc_services.ModelService(self._core, options.reload_base_paths), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        address = f"{bracketed(options.host)}:{options.port}"
        try:
            if credentials is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise InputError(
                f"`port`: cannot listen on {address}; it is in use, or is not of this machine."
            ) from None
        server.start()
        return server

    def _start_rest(self):
        options = self._options
        app = create_app(
            self._core,
            options.rest_api_timeout_in_ms / 1000,
            options.rest_api_max_body_bytes,
            options.rest_api_num_threads,
            options.rest_api_enable_cors_support,
        )
        self._rest = HTTPServer(app, options.host, max(options.rest_api_port, 0))
        self.rest_api_port = self._rest.port


def _models(options):
    if bool(options.model_base_path) == bool(options.model_config_file):
        raise InputError("use either `model_base_path` or `model_config_file`.")
    if options.model_config_file:
        return files.read_model_config(options.model_config_file)
    check_base_path(options.model_base_path)
    name = options.model_name or pathlib.Path(options.model_base_path).resolve().name
    return [ModelConfig(name, options.model_base_path)]


def _batching(options):
    if not options.enable_batching:
        if options.batching_parameters_file:
            raise InputError("`batching_parameters_file` requires `enable_batching`.")
        return None
    if options.batching_parameters_file:
        return files.read_batching_parameters(options.batching_parameters_file)
    return BatchingParameters()


def _check_options(options):
    try:
        socket.getaddrinfo(options.host, None)
    except OSError as error:
        raise InputError(
            f"`host` must be an address or name of this machine, got {options.host!r} ({error})."
        ) from None
    if isinstance(options.reload_base_paths, str):  # each of its characters would be a folder
        raise InputError(
            f"`reload_base_paths` must be a list of folders, got {options.reload_base_paths!r}."
        )
    for name in ("rest_api_num_threads", "rest_api_timeout_in_ms"):
        if getattr(options, name) < 1:
            raise InputError(f"`{name}` must be positive, got {getattr(options, name)}.")
    if options.port and options.port == options.rest_api_port:
        raise InputError("`rest_api_port` must differ from `port`.")
    for name in ("port", "rest_api_port"):
        if not -1 <= getattr(options, name) < 2**16:
            raise InputError(
                f"`{name}` must be a port, at most 65535, got {getattr(options, name)}."
            )


def _credentials(ssl_config_file):
    if not ssl_config_file:
        return None
    config = files.read_ssl(ssl_config_file)
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        config.client_verify,
    )
