"""Call TensorFlow Serving over REST."""

import contextlib
import json
import ssl
import time
import urllib.parse
from typing import TYPE_CHECKING

import numpy as np
import urllib3

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import tensors
from keras_llm.types import JSON, PathLike

if TYPE_CHECKING:
    from keras_llm.export.serving.client.connection import Route

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_IDLE_CONNECTIONS = 64  # further connections are closed after their request


class RestConnection:
    """A pool of HTTP connections to a server; the arguments are those of `connection.connect`."""

    def __init__(
        self,
        target: str,
        route: "Route",
        headers: dict[str, str],
        files: dict[str, PathLike | None],
    ) -> None:
        try:
            url = urllib3.util.parse_url(target)
        except urllib3.exceptions.LocationParseError:
            url = urllib3.util.Url()
        if url.scheme not in ("http", "https") or not url.host or url.query:
            raise InputError(
                f'`target` must be "http://host:port" or "https://host:port", got {target!r}.'
            )
        options = {"ssl_context": _tls_context(files)} if url.scheme == "https" else {}
        if url.scheme == "http" and any(files.values()):
            raise InputError("certificates require an https:// `target`.")
        self._pool = urllib3.connection_from_url(target, maxsize=_IDLE_CONNECTIONS, **options)
        self._headers = {**headers, "Content-Type": "application/json"}
        model = urllib.parse.quote(route.model, safe="")
        path = f"{(url.path or '').rstrip('/')}/v1/models/{model}"
        if route.version is not None:
            path += f"/versions/{route.version}"
        if route.label is not None:
            path += f"/labels/{urllib.parse.quote(route.label, safe='')}"
        self._url_path = path

    def predict(
        self, signature: str, spec: JSON, arrays: dict[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        inputs = {name: _to_json(array) for name, array in arrays.items()}
        body = json.dumps({"signature_name": signature, "inputs": inputs})
        answer = self._ask("POST", ":predict", seconds, body)
        outputs, specs = answer.get("outputs"), spec["outputs"]
        if len(specs) == 1:
            outputs = {next(iter(specs)): outputs}
        try:
            outputs = sorted(outputs.items())
            return {n: tensors.from_json(n, v, specs[n]["dtype"]) for n, v in outputs}
        except (InputError, KeyError, AttributeError) as error:
            raise ServingError("INTERNAL", f"the response cannot be read: {error!r}.") from None

    def metadata(self, seconds: float) -> JSON:
        answer = self._ask("GET", "/metadata", seconds)
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        return {
            name: {"inputs": _specs(s["inputs"]), "outputs": _specs(s["outputs"])}
            for name, s in signatures.items()
        }

    def status(self, seconds: float) -> list[JSON]:
        answer = self._ask("GET", "", seconds)
        return [
            {
                "version": int(row["version"]),
                "state": row["state"],
                "error": row.get("status", {}).get("error_message", ""),
            }
            for row in answer.get("model_version_status", [])
        ]

    def close(self) -> None:
        self._pool.close()

    def _ask(self, method, path, seconds, body=None):
        end = time.monotonic() + seconds
        try:
            response = self._pool.urlopen(
                method,
                self._url_path + path,
                body,
                self._headers,
                retries=False,
                timeout=urllib3.Timeout(total=seconds),
                preload_content=False,
            )
            with contextlib.closing(response):
                data = _read_body(response, end)
        except urllib3.exceptions.NewConnectionError as error:  # a subclass of TimeoutError
            raise ServingError("UNAVAILABLE", str(error)) from None
        except (urllib3.exceptions.TimeoutError, TimeoutError):
            message = f"no response within {seconds:.3g} s."
            raise ServingError("DEADLINE_EXCEEDED", message) from None
        except urllib3.exceptions.SSLError as error:
            raise ServingError("UNAUTHENTICATED", f"TLS: {error}") from None
        except urllib3.exceptions.HTTPError as error:
            if any(isinstance(cause, TimeoutError) for cause in error.args):  # while sending
                message = f"the request was not sent within {seconds:.3g} s."
                raise ServingError("DEADLINE_EXCEEDED", message) from None
            raise ServingError("UNAVAILABLE", f"{type(error).__name__}: {error}") from None
        return _parse(response.status, data)


def _read_body(response, end):
    """Read a response until a time; the timeout of `urlopen` limits only each single read."""
    data = bytearray()
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if response.connection is not None:
            response.connection.sock.settimeout(left)
        chunk = response.read1(2**20)
        if not chunk:
            return data
        data += chunk


def _parse(status, data):
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if status == 200 and isinstance(answer, dict):
        return answer
    message = answer.get("error") if isinstance(answer, dict) else None
    if status == 200:
        raise ServingError("INTERNAL", "the response is not a JSON object.")
    raise ServingError(_CODES.get(status, "INTERNAL"), message or f"HTTP status {status}.")


def _specs(infos):
    specs = {}
    for name, info in infos.items():
        shape = info["tensor_shape"]
        sizes = [int(dim["size"]) for dim in shape.get("dim", [])]
        specs[name] = {
            "dtype": tensors.dtype_number(info["dtype"]),
            "shape": None
            if shape.get("unknown_rank")
            else [None if size < 0 else size for size in sizes],
        }
    return specs


def _to_json(array):
    """Convert an array to JSON; bytes that are not UTF-8 become base64."""
    if array.dtype != object:
        return tensors.to_json("", array)

    def convert(value):
        if isinstance(value, list):
            return [convert(part) for part in value]
        try:
            return value.decode()
        except UnicodeDecodeError:
            return tensors.to_json("_bytes", _scalar(value))

    return convert(array.tolist())


def _scalar(value):
    array = np.empty((), object)
    array[()] = value
    return array


def _tls_context(files):
    try:
        context = ssl.create_default_context(cafile=files["root_certificates"])
        if files["client_certificate"]:
            context.load_cert_chain(files["client_certificate"], files["client_key"])
    except OSError as error:
        raise InputError(f"a certificate cannot be read: {error}.") from None
    return context
