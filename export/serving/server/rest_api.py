"""Answer TensorFlow Serving's REST API: convert its JSON to and from arrays.

The endpoints read the server's settings from the state of the application: `core`, `timeout` and
`max_body_bytes`.

Reference:
    tensorflow.org/tfx/serving/api_rest.
"""

import asyncio
import json
import time

from google.protobuf import json_format
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_pb2,
    regression_pb2,
)

from keras_llm.errors import ServingError
from keras_llm.export.serving import tensors
from keras_llm.export.serving.server import examples, grpc_services
from keras_llm.export.serving.server.cancellation import Cancellation
from keras_llm.export.serving.versions import version_number
from keras_llm.types import JSON


def routes() -> list[Route]:
    """Return the routes of the API."""
    bases = [
        "/v1/models/{name}",
        "/v1/models/{name}/versions/{version}",
        "/v1/models/{name}/labels/{label}",
    ]
    return [
        *(Route(f"{base}:{{method}}", _run_method, methods=["GET", "POST"]) for base in bases),
        *(Route(f"{base}/metadata", _get_metadata) for base in bases),
        *(Route(base, _get_status) for base in bases),
        Route("/v1/models", _list_models),
    ]


def json_response(value: JSON, status_code: int = 200) -> Response:
    """Return a value as JSON.

    Non-ASCII characters are escaped, because an error may contain a lone surrogate, which UTF-8
    cannot encode. NaN and infinity are written as TensorFlow Serving writes them.
    """
    return Response(json.dumps(value), status_code, media_type="application/json")


async def read_body(request: Request) -> bytearray:
    """Read the body of a request.

    Raises:
        HTTPException: 413 as soon as it is known to be longer than `max_body_bytes`; 504 if it
            does not arrive within `timeout`.
    """
    limit = request.app.state.max_body_bytes
    too_long = f"the body must have at most {limit} bytes."
    if int(request.headers.get("Content-Length", 0)) > limit:
        raise HTTPException(413, too_long)
    body = bytearray()
    try:
        async with asyncio.timeout(request.app.state.timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise HTTPException(413, too_long)
    except TimeoutError:
        message = "the body did not arrive in time."
        raise HTTPException(504, message, {"Connection": "close"}) from None
    return body


async def _run_method(request: Request) -> Response:
    if request.method != "POST":
        raise HTTPException(405, headers={"Allow": "POST"})
    deadline = time.monotonic() + request.app.state.timeout
    try:
        body = await read_body(request)
        cancellation = Cancellation()
        watcher = asyncio.create_task(_cancel_on_disconnect(request, cancellation))
        try:
            return await run_in_threadpool(
                _answer, request.app.state.core, request.path_params, body, deadline, cancellation
            )
        except asyncio.CancelledError:  # at the end of the grace period
            await asyncio.to_thread(cancellation.set)
            raise
        finally:
            watcher.cancel()
    except asyncio.CancelledError:
        raise ServingError("UNAVAILABLE", "the server is shutting down.") from None


async def _cancel_on_disconnect(request, cancellation):
    while (await request.receive())["type"] != "http.disconnect":
        pass
    await asyncio.to_thread(cancellation.set)


def _answer(core, path, body, deadline, cancellation):
    method = _METHODS.get(path["method"])
    if method is None:
        raise HTTPException(404, f"the method must be one of {', '.join(_METHODS)}.")
    with core.request(path["name"], path["method"], "REST"):
        return json_response(method(core, _spec(path), _parse(body), deadline, cancellation))


def _get_status(request: Request) -> Response:
    return json_response(
        _to_dict(grpc_services.status(request.app.state.core, _spec(request.path_params)))
    )


def _get_metadata(request: Request) -> Response:
    message = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=_spec(request.path_params), metadata_field=["signature_def"]
    )
    response = grpc_services.metadata(request.app.state.core, message)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return json_response(
        {
            "model_spec": _to_dict(response.model_spec),
            "metadata": {"signature_def": _to_dict(signatures)},
        }
    )


def _list_models(request: Request) -> Response:
    """Answer `GET /v1/models`, an addition to TensorFlow Serving."""
    core = request.app.state.core
    rows = [
        {
            "name": name,
            "labels": labels,
            **_to_dict(grpc_services.status(core, model_pb2.ModelSpec(name=name))),
        }
        for name, labels in core.models.names().items()
    ]
    return json_response({"models": rows})


def _spec(path):
    """Return a ModelSpec for the parameters of a path."""
    spec = model_pb2.ModelSpec(name=path["name"], version_label=path.get("label", ""))
    if version := path.get("version"):
        number = version_number(version)
        if number is None:
            raise ServingError("INVALID_ARGUMENT", "the version must be a 64-bit integer.")
        spec.version.value = number
    return spec


def _parse(body):
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServingError("INVALID_ARGUMENT", f"the body is not JSON: {error}.") from None
    if not isinstance(request, dict):
        raise ServingError("INVALID_ARGUMENT", "the body must be a JSON object.")
    return request


def _predict(core, spec, request, deadline, cancellation):
    """Answer `:predict`, in the row ("instances") or column ("inputs") format of the request."""
    _check_fields(request, "signature_name", "instances", "inputs")
    if ("instances" in request) == ("inputs" in request):
        raise ServingError("INVALID_ARGUMENT", 'the body must have either "instances" or "inputs".')
    name = _signature_name(request)
    with core.models.use(*grpc_services.model_of(spec)) as (_, servable):
        signature = servable.signature(name)
        if "instances" in request:
            columns, rows = _columns(signature, request["instances"])
        else:
            columns, rows = request["inputs"], None
            if not _is_named(columns):
                columns = {_only_input(signature): columns}
        signature.check_names(columns)
        arrays = {
            key: tensors.from_json(key, value, signature.inputs[key].dtype)
            for key, value in columns.items()
        }
        _, outputs = core.predict(servable, name, arrays, (), deadline, cancellation)
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


def _classify(core, spec, request, deadline, cancellation):
    """Answer `:classify`: {"results": [[[label, score], ...], ...]}."""
    message = classification_pb2.ClassificationRequest()
    limits = deadline, cancellation
    result = _run_examples(core, spec, request, limits, message, examples.classify)
    return {
        "results": [
            [[entry.label, entry.score] for entry in row.classes] for row in result.classifications
        ]
    }


def _regress(core, spec, request, deadline, cancellation):
    """Answer `:regress`: {"results": [number, ...]}."""
    message = regression_pb2.RegressionRequest()
    limits = deadline, cancellation
    result = _run_examples(core, spec, request, limits, message, examples.regress)
    return {"results": [row.value for row in result.regressions]}


_METHODS = {"predict": _predict, "classify": _classify, "regress": _regress}


def _columns(signature, instances):
    """Convert rows to a column for each input; return the columns and the number of rows."""
    if not isinstance(instances, list) or not instances:
        raise ServingError("INVALID_ARGUMENT", '"instances" must be a non-empty list.')
    first = instances[0]
    if not _is_named(first):
        return {_only_input(signature): instances}, len(instances)
    for row in instances:
        if not isinstance(row, dict) or set(row) != set(first):
            raise ServingError("INVALID_ARGUMENT", "all instances must have the same inputs.")
    return {key: [row[key] for row in instances] for key in first}, len(instances)


def _is_named(value):
    """Return whether a value has a name for each input; `{"b64": "..."}` is a string."""
    return isinstance(value, dict) and set(value) != {"b64"}


def _only_input(signature):
    if len(signature.inputs) != 1:
        raise ServingError(
            "INVALID_ARGUMENT",
            f"signature {signature.name} has several inputs, which must be named: "
            f"{', '.join(sorted(signature.inputs))}.",
        )
    return next(iter(signature.inputs))


def _run_examples(core, spec, request, limits, message, answer):
    _check_fields(request, "signature_name", "examples", "context")
    rows = request.get("examples")
    if not isinstance(rows, list) or not rows:
        raise ServingError("INVALID_ARGUMENT", '"examples" must be a non-empty list.')
    message.model_spec.signature_name = _signature_name(request)
    if "context" in request:
        filled = message.input.example_list_with_context
        filled.context.CopyFrom(examples.example_of(request["context"], "context"))
    else:
        filled = message.input.example_list
    filled.examples.extend(examples.example_of(row) for row in rows)
    with core.models.use(*grpc_services.model_of(spec)) as (_, servable):

        def run(signature, arrays):
            return core.run(servable, signature, arrays, *limits)

        return answer(servable, message, run)


def _signature_name(request):
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise ServingError("INVALID_ARGUMENT", '"signature_name" must be a string.')
    return name


def _check_fields(request, *allowed):
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
