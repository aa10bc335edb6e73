"""Open a gRPC or REST connection to a server, depending on the target."""

import dataclasses
import re
from typing import TYPE_CHECKING

from keras_llm.errors import InputError, optional_packages
from keras_llm.types import PathLike

if TYPE_CHECKING:
    from keras_llm.export.serving.client.grpc import GrpcConnection
    from keras_llm.export.serving.client.rest import RestConnection


@dataclasses.dataclass(frozen=True)
class Route:
    """A model and its version: by number, by label, or the newest one if both are None."""

    model: str
    version: int | None = None
    label: str | None = None


def connect(
    target: str,
    route: Route,
    headers: dict[str, str],
    tls: bool,
    root_certificates: PathLike | None,
    client_certificate: PathLike | None,
    client_key: PathLike | None,
) -> "RestConnection | GrpcConnection":
    """Open a connection to a target; the arguments are those of `Client`.

    Returns:
        An object with `predict(signature, spec, arrays, seconds)`, `metadata(seconds)`,
        `status(seconds)` and `close()`, whose calls raise ServingError.
    """
    if not isinstance(target, str):
        raise InputError(f"`target` must be a str, got {target!r}.")
    for key, value in headers.items():
        is_text = isinstance(key, str) and isinstance(value, str)
        if not is_text or re.search(r"[\r\n]|[^\0-\xff]", key + value):
            raise InputError(
                "`headers` must map str to str in Latin-1 without line breaks, got "
                f"{key!r}: {value!r}."
            )
    if bool(client_certificate) != bool(client_key):
        raise InputError("`client_certificate` and `client_key` must be used together.")
    files = {
        "root_certificates": root_certificates,
        "client_certificate": client_certificate,
        "client_key": client_key,
    }
    if "://" in target:
        with optional_packages("Client over REST"):
            from keras_llm.export.serving.client.rest import RestConnection

        return RestConnection(target, route, headers, files)
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", target):
        raise InputError(
            f'`target` must be "host:port" (gRPC) or "http://host:port" (REST), got {target!r}.'
        )
    with optional_packages("Client over gRPC"):
        from keras_llm.export.serving.client.grpc import GrpcConnection

    return GrpcConnection(target, route, headers, tls or any(files.values()), files)
