"""Call TensorFlow Serving over gRPC."""

import pathlib
from typing import TYPE_CHECKING

import grpc
import numpy as np

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import tensors, wire
from keras_llm.types import JSON, PathLike

if TYPE_CHECKING:
    from keras_llm.export.serving.client.connection import Route

_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),  # `Client` retries within its timeout
    # Reconnect soon to a restarted server; gRPC's default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcConnection:
    """A gRPC channel to a server; the arguments are those of `connection.connect`."""

    def __init__(
        self,
        target: str,
        route: "Route",
        headers: dict[str, str],
        tls: bool,
        files: dict[str, PathLike | None],
    ) -> None:
        self._route = route
        self._headers = [(name.lower(), value) for name, value in headers.items()]
        if tls:
            credentials = grpc.ssl_channel_credentials(
                _contents("root_certificates", files),
                _contents("client_key", files),
                _contents("client_certificate", files),
            )
            self._channel = grpc.secure_channel(target, credentials, _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._predict = self._method(_PREDICTION, "Predict", "Predict")
        self._metadata = self._method(_PREDICTION, "GetModelMetadata", "GetModelMetadata")
        self._status = self._method(_MODEL, "GetModelStatus", "GetModelStatus")

    def predict(
        self, signature: str, spec: JSON, arrays: dict[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        request = wire.message("tensorflow.serving.PredictRequest")()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature
        for name, array in arrays.items():
            tensors.fill_proto(request.inputs[name], array, spec["inputs"][name]["dtype"])
        response = self._call(self._predict, request, seconds)
        try:
            outputs = sorted(response.outputs.items())
            return {name: tensors.from_proto(name, proto) for name, proto in outputs}
        except InputError as error:
            raise ServingError("INTERNAL", f"the response cannot be read: {error}") from None

    def metadata(self, seconds: float) -> JSON:
        request = wire.message("tensorflow.serving.GetModelMetadataRequest")()
        self._fill(request.model_spec)
        request.metadata_field.append("signature_def")
        response = self._call(self._metadata, request, seconds)
        signatures = wire.message("tensorflow.serving.SignatureDefMap").FromString(
            response.metadata["signature_def"].value
        )
        return {
            name: {"inputs": _specs(signature.inputs), "outputs": _specs(signature.outputs)}
            for name, signature in signatures.signature_def.items()
        }

    def status(self, seconds: float) -> list[JSON]:
        request = wire.message("tensorflow.serving.GetModelStatusRequest")()
        self._fill(request.model_spec)
        response = self._call(self._status, request, seconds)
        return [
            {
                "version": row.version,
                "state": _STATES.get(row.state, "UNKNOWN"),
                "error": row.status.error_message,
            }
            for row in response.model_version_status
        ]

    def close(self) -> None:
        self._channel.close()

    def _method(self, service, name, message):
        return self._channel.unary_unary(
            service + name,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=wire.message(f"tensorflow.serving.{message}Response").FromString,
        )

    def _fill(self, model_spec):
        model_spec.name = self._route.model
        if self._route.version is not None:
            model_spec.version.value = self._route.version
        if self._route.label is not None:
            model_spec.version_label = self._route.label

    def _call(self, method, request, seconds):
        try:
            return method(request, timeout=seconds, metadata=self._headers)
        except grpc.RpcError as error:
            # A server that shuts down cancels pending calls; this client cancels none.
            is_shutdown = error.code() == grpc.StatusCode.CANCELLED
            code = grpc.StatusCode.UNAVAILABLE if is_shutdown else error.code()
            raise ServingError(code.name, error.details() or "no response.") from None


def _specs(infos):
    return {
        name: {
            "dtype": info.dtype,
            "shape": None
            if info.tensor_shape.unknown_rank
            else [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim],
        }
        for name, info in infos.items()
    }


def _contents(name, files):
    if not files[name]:
        return None
    try:
        return pathlib.Path(files[name]).read_bytes()
    except OSError as error:
        raise InputError(f"`{name}`: {files[name]}: {error.strerror}.") from None
