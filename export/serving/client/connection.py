"""The ways to a server: which of them a target names, and what both have in common."""

import dataclasses
import re

from keras_llm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Route:
    """Which model, and which of its versions: a version, a label, or neither for the newest."""

    model: str
    version: int | None = None
    label: str | None = None


def connect(target, route, headers, tls, root_certificates, client_certificate, client_key):
    """A connection for a target; arguments as of `Client`.

    Returns:
        An object with `predict(signature, spec, arrays, seconds)`, `metadata(seconds)`,
        `status(seconds)` and `close()`, whose calls raise ServingError.
    """
    if not isinstance(target, str):
        raise InputError(f"`target` must be a str, got {target!r}.")
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str) or "\n" in key + value:
            raise InputError(f"`headers` must be strs, got {key!r}: {value!r}.")
    if bool(client_certificate) != bool(client_key):
        raise InputError("`client_certificate` and `client_key` go together.")
    files = {
        "root_certificates": root_certificates,
        "client_certificate": client_certificate,
        "client_key": client_key,
    }
    if "://" in target:
        from keras_llm.export.serving.client.rest import RestConnection

        return RestConnection(target, route, headers, files)
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", target):
        raise InputError(
            f'`target` must be "host:port" (gRPC) or "http://host:port" (REST), got {target!r}.'
        )
    from keras_llm.export.serving.client.grpc import GrpcConnection

    return GrpcConnection(target, route, headers, tls or any(files.values()), files)
