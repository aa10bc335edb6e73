"""Implement the gRPC services of `tensorflow_model_server`."""

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import tensors
from keras_llm.export.serving.server import examples
from keras_llm.export.serving.server.cancellation import Cancellation
from keras_llm.export.serving.server.files import check_base_paths, model_configs

if TYPE_CHECKING:
    from keras_llm.export.serving.server.core import Core

_LOG = logging.getLogger("keras_llm.serve")
_LONGEST_WAIT = 1e7  # seconds
_LONGEST_MESSAGE = 1000  # characters; gRPC sends it in a header, whose size is limited


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The PredictionService: Predict, GetModelMetadata, Classify and Regress.

    Its other methods return UNIMPLEMENTED.
    """

    def __init__(self, core: "Core") -> None:
        self._core = core

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        spec = request.model_spec
        with _answering(context), self._core.request(spec.name, "predict", "GRPC"):
            deadline, cancellation = _limits(context)
            with self._core.models.use(*model_of(spec)) as (version, servable):
                servable.signature(spec.signature_name).check_names(request.inputs)
                arrays = {n: tensors.from_proto(n, proto) for n, proto in request.inputs.items()}
                signature_name, outputs = self._core.predict(
                    servable,
                    spec.signature_name,
                    arrays,
                    list(request.output_filter),
                    deadline,
                    cancellation,
                )
                response = predict_pb2.PredictResponse()
                _fill_spec(response.model_spec, spec, version, signature_name)
                signature = servable.signature(signature_name)
                for name, array in outputs.items():
                    number = signature.outputs[name].dtype
                    tensors.fill_proto(response.outputs[name], array, number)
                return response

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        with _answering(context):
            return metadata(self._core, request)

    def Classify(
        self, request: classification_pb2.ClassificationRequest, context: grpc.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        response = classification_pb2.ClassificationResponse()
        return self._by_example(request, context, "classify", examples.classify, response)

    def Regress(
        self, request: regression_pb2.RegressionRequest, context: grpc.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        response = regression_pb2.RegressionResponse()
        return self._by_example(request, context, "regress", examples.regress, response)

    def _by_example(self, request, context, api, answer, response):
        spec = request.model_spec
        with _answering(context), self._core.request(spec.name, api, "GRPC"):
            deadline, cancellation = _limits(context)
            with self._core.models.use(*model_of(spec)) as (version, servable):

                def run(signature, arrays):
                    return self._core.run(servable, signature, arrays, deadline, cancellation)

                response.result.CopyFrom(answer(servable, request, run))
                name = spec.signature_name or "serving_default"
                _fill_spec(response.model_spec, spec, version, name)
                return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """The ModelService: GetModelStatus and HandleReloadConfigRequest.

    Args:
        core: `Core`.
        reload_base_paths: sequence of folders from which HandleReloadConfigRequest may load models.
    """

    def __init__(self, core: "Core", reload_base_paths: Sequence[str] = ()) -> None:
        self._core = core
        self._reload_base_paths = reload_base_paths

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        with _answering(context):
            return status(self._core, request.model_spec)

    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        response = model_management_pb2.ReloadConfigResponse()
        try:
            configs = model_configs(request.config)
            check_base_paths(configs, self._reload_base_paths)
            self._core.models.configure(configs)
        except (ServingError, InputError) as error:
            # The protocol reports errors in the response of a successful call.
            code = error.code if isinstance(error, ServingError) else "INVALID_ARGUMENT"
            response.status.error_code = error_codes_pb2.Code.Value(code)
            response.status.error_message = getattr(error, "message", str(error))
        return response


def model_of(spec: Any) -> tuple[str, int | None, str]:
    """Return the name, version and label in a ModelSpec."""
    if not spec.name:
        raise ServingError("INVALID_ARGUMENT", "the request does not name a model.")
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label


def metadata(
    core: "Core", request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Answer a GetModelMetadataRequest."""
    fields = list(request.metadata_field)
    if fields != ["signature_def"]:
        raise ServingError(
            "INVALID_ARGUMENT", f'metadata_field must be ["signature_def"], got {fields[:5]}.'
        )
    with core.models.use(*model_of(request.model_spec)) as (version, servable):
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _fill_spec(response.model_spec, request.model_spec, version, "")
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in servable.signature_defs.items():
            signatures.signature_def[name].CopyFrom(signature)
        response.metadata["signature_def"].Pack(signatures)
        return response


def status(core: "Core", spec: Any) -> get_model_status_pb2.GetModelStatusResponse:
    """Answer a GetModelStatusRequest."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, state, code, message in core.models.status(*model_of(spec)):
        added = response.model_version_status.add(version=version, state=state)
        added.status.error_code = error_codes_pb2.Code.Value(code)
        added.status.error_message = message
    return response


def _fill_spec(filled, requested, version, signature_name):
    filled.name = requested.name
    filled.version.value = version
    filled.signature_name = signature_name


def _limits(context):
    """Return the deadline of a call or None, and a `Cancellation` that is set when the call
    ends."""
    left = context.time_remaining()
    if left is not None and left > _LONGEST_WAIT:  # gRPC's value for no deadline
        left = None
    cancellation = Cancellation()
    if not context.add_callback(cancellation.set):
        raise ServingError("CANCELLED", "the client has disconnected.")
    return (None if left is None else time.monotonic() + left), cancellation


@contextlib.contextmanager
def _answering(context):
    """Convert an exception to the status of a call."""
    try:
        yield
    except ServingError as error:
        code, message = error.code, error.message
    except Exception:
        _LOG.exception("a request failed")
        code, message = "INTERNAL", "internal server error; see the server's log."
    else:
        return
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "..."
    context.abort(getattr(grpc.StatusCode, code, grpc.StatusCode.UNKNOWN), message)
