"""Convert between the JSON of TensorFlow Serving's REST API and arrays.

Reference:
    tensorflow.org/tfx/serving/api_rest.
"""

import json
from typing import TYPE_CHECKING

from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_pb2,
    regression_pb2,
)

from keras_llm.errors import ServingError
from keras_llm.export.serving import tensors
from keras_llm.export.serving.server import examples, grpc_services
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.export.serving.server.core import Core


def spec(name: str, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    """Return a ModelSpec for the parts of a path."""
    model_spec = model_pb2.ModelSpec(name=name)
    if version is not None:
        if int(version) >= 2**63:
            raise ServingError("INVALID_ARGUMENT", "the version must fit in 64 bits.")
        model_spec.version.value = int(version)
    if label is not None:
        model_spec.version_label = label
    return model_spec


def read_body(body: bytes) -> JSON:
    """Parse the body of a request, a JSON object."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServingError("INVALID_ARGUMENT", f"the body is not JSON: {error}.") from None
    if not isinstance(request, dict):
        raise ServingError("INVALID_ARGUMENT", "the body must be a JSON object.")
    return request


def predict(
    core: "Core", model_spec: model_pb2.ModelSpec, request: JSON, deadline: float | None
) -> JSON:
    """Answer `:predict`, in the row ("instances") or column ("inputs") format of the request."""
    _only(request, "signature_name", "instances", "inputs")
    if ("instances" in request) == ("inputs" in request):
        raise ServingError("INVALID_ARGUMENT", 'the body must have either "instances" or "inputs".')
    name = _signature_name(request)
    with core.models.use(*grpc_services.model_of(model_spec)) as (_, servable):
        signature = servable.signature(name)
        if "instances" in request:
            columns, rows = _columns(signature, request["instances"])
        else:
            columns, rows = request["inputs"], None
            if not (isinstance(columns, dict) and set(columns) & set(signature.inputs)):
                columns = {_only_input(signature): columns}
        arrays = {
            key: tensors.from_json(key, value, signature.inputs[key].dtype)
            for key, value in columns.items()
            if key in signature.inputs
        }
        # `core.predict` reports missing and unknown inputs, as for gRPC.
        arrays |= {key: None for key in columns if key not in signature.inputs}
        _, outputs = core.predict(servable, name, arrays, (), deadline)
    values = {key: tensors.to_json(key, array) for key, array in outputs.items()}
    if rows is None:
        return {"outputs": values if len(values) != 1 else next(iter(values.values()))}
    for key, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise ServingError(
                "INVALID_ARGUMENT",
                f'output {key} does not have {rows} rows, one for each of the "instances".',
            )
    if len(values) == 1:
        return {"predictions": next(iter(values.values()))}
    return {"predictions": [{k: v[row] for k, v in values.items()} for row in range(rows)]}


def classify(
    core: "Core", model_spec: model_pb2.ModelSpec, request: JSON, deadline: float | None
) -> JSON:
    """Answer `:classify`: {"results": [[[label, score], ...], ...]}."""
    message = classification_pb2.ClassificationRequest()
    result = _by_example(core, model_spec, request, deadline, message, examples.classify)
    return {
        "results": [
            [[entry.label, entry.score] for entry in row.classes] for row in result.classifications
        ]
    }


def regress(
    core: "Core", model_spec: model_pb2.ModelSpec, request: JSON, deadline: float | None
) -> JSON:
    """Answer `:regress`: {"results": [number, ...]}."""
    message = regression_pb2.RegressionRequest()
    result = _by_example(core, model_spec, request, deadline, message, examples.regress)
    return {"results": [row.value for row in result.regressions]}


ANSWERS = {"predict": predict, "classify": classify, "regress": regress}


def status(core: "Core", model_spec: model_pb2.ModelSpec) -> JSON:
    """Answer `GET /v1/models/NAME`."""
    return _to_dict(grpc_services.status(core, model_spec))


def metadata(core: "Core", model_spec: model_pb2.ModelSpec) -> JSON:
    """Answer `GET /v1/models/NAME/metadata`."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=model_spec, metadata_field=["signature_def"]
    )
    response = grpc_services.metadata(core, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {
        "model_spec": _to_dict(response.model_spec),
        "metadata": {"signature_def": _to_dict(signatures)},
    }


def models(core: "Core") -> JSON:
    """Answer `GET /v1/models`, an addition to TensorFlow Serving: the models and their versions."""
    return {
        "models": [
            {
                "name": name,
                "labels": labels,
                **_to_dict(grpc_services.status(core, model_pb2.ModelSpec(name=name))),
            }
            for name, labels in core.models.names().items()
        ]
    }


def _columns(signature, instances):
    """Convert rows to a column for each input; return the columns and the number of rows."""
    if not isinstance(instances, list) or not instances:
        raise ServingError("INVALID_ARGUMENT", '"instances" must be a non-empty list.')
    first = instances[0]
    is_named = isinstance(first, dict) and set(first) != {"b64"}
    if not is_named:
        return {_only_input(signature): instances}, len(instances)
    for row in instances:
        if not isinstance(row, dict) or set(row) != set(first):
            raise ServingError("INVALID_ARGUMENT", "all instances must have the same inputs.")
    return {key: [row[key] for row in instances] for key in first}, len(instances)


def _only_input(signature):
    if len(signature.inputs) != 1:
        raise ServingError(
            "INVALID_ARGUMENT",
            f"signature {signature.name} has several inputs, which must be named: "
            f"{', '.join(sorted(signature.inputs))}.",
        )
    return next(iter(signature.inputs))


def _by_example(core, model_spec, request, deadline, message, answer):
    _only(request, "signature_name", "examples", "context")
    rows = request.get("examples")
    if not isinstance(rows, list) or not rows:
        raise ServingError("INVALID_ARGUMENT", '"examples" must be a non-empty list.')
    message.model_spec.signature_name = _signature_name(request)
    context = {"context": request["context"]} if "context" in request else {}
    if context:
        filled = message.input.example_list_with_context
        filled.context.CopyFrom(examples.example_of(context["context"], "context"))
    else:
        filled = message.input.example_list
    filled.examples.extend(examples.example_of(row) for row in rows)
    with core.models.use(*grpc_services.model_of(model_spec)) as (_, servable):

        def run(signature, arrays):
            return core.run(servable, signature, arrays, deadline)

        return answer(servable, message, run)


def _signature_name(request):
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise ServingError("INVALID_ARGUMENT", '"signature_name" must be a string.')
    return name


def _only(request, *allowed):
    unknown = sorted(set(request) - set(allowed))
    if unknown:
        raise ServingError(
            "INVALID_ARGUMENT",
            f"unknown field {unknown[0][:50]!r}; must be one of {', '.join(allowed)}.",
        )


def _to_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
