"""Serve TensorFlow Serving's REST API, the metrics and the web page over HTTP/1.1."""

import contextlib
import http.server
import json
import logging
import pathlib
import re
import socket
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING

from keras_llm.errors import ServingError
from keras_llm.export.serving.server import rest_api

if TYPE_CHECKING:
    from keras_llm.export.serving.server.core import Core

_LOG = logging.getLogger("keras_llm.serve")
_HTTP = {
    "OK": 200,
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}
_METHOD = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)"
)
_MODEL = re.compile(r"/v1/models(?:/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(/metadata)?)?/?")
_PAGE = pathlib.Path(__file__).with_name("page")
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_CONTENT_POLICY = "default-src 'self'; img-src data:; frame-ancestors 'none'"  # data: for the icon
_IDLE_SECONDS = 60  # idle connections are closed after this time
_PATIENCE_SECONDS = 2  # time to wait for another connection to close
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class RestServer:
    """An HTTP server that runs until it is closed, with one thread for each connection.

    Args:
        core: `Core`.
        address: (host, port); port 0 selects a free port.
        timeout: float. Maximum seconds for a request.
        longest_body: int. Maximum bytes of a body.
        connections: int. Maximum number of open connections; further ones wait briefly and are
            then refused.
        metrics_path: path of the metrics, or None to disable them.
        allow_other_sites: bool. Whether to allow requests from pages of other sites (CORS).
    """

    def __init__(
        self,
        core: "Core",
        address: tuple[str, int],
        timeout: float,
        longest_body: int,
        connections: int,
        metrics_path: str | None,
        allow_other_sites: bool,
    ) -> None:
        settings = {
            "core": core,
            "seconds": timeout,
            "longest_body": longest_body,
            "metrics_path": metrics_path,
            "allow_other_sites": allow_other_sites,
            "closing": threading.Event(),
            "busy": _Busy(),
        }
        self._handler = type("Handler", (_Handler,), settings)
        self._server = _Server(address, self._handler, connections)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="rest", daemon=True
        )
        self._thread.start()

    def close(self, grace: float) -> None:
        """Reject new requests with 503 and wait at most `grace` seconds for running ones."""
        self._handler.closing.set()
        self._server.shutdown()
        self._handler.busy.wait_until_idle(grace)
        self._server.server_close()


class _Busy:
    """A counter of running requests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_until_idle(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0, seconds)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], handler: type["_Handler"], connections: int
    ) -> None:
        self._free = threading.BoundedSemaphore(connections)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        if not self._free.acquire(timeout=_PATIENCE_SECONDS):
            with contextlib.suppress(OSError):
                request.sendall(_TOO_MANY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(
        self, request: socket.socket, client_address: tuple[str, int]
    ) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        _LOG.debug("a client disconnected", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        with self.busy:
            self._answer(self._get)

    def do_POST(self) -> None:
        with self.busy:
            self._answer(self._post)

    def do_OPTIONS(self) -> None:
        with self.busy:
            self._answer(self._options)

    def _answer(self, method):
        try:
            if self.closing.is_set():
                raise ServingError("UNAVAILABLE", "the server is shutting down.")
            kind, body = method()
            code = 200
        except _HttpError as error:
            code, (kind, body) = error.code, _json({"error": error.message})
        except ServingError as error:
            code, (kind, body) = _HTTP.get(error.code, 500), _json({"error": error.message})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        except Exception:
            _LOG.exception("a request failed")
            message = "internal server error; see the server's log."
            code, (kind, body) = 500, _json({"error": message})
        self._send(code, kind, body)

    def _get(self):
        path = self._path()
        if path == self.metrics_path:
            return "text/plain; version=0.0.4; charset=utf-8", self.core.metrics.page().encode()
        if path in _FILES:
            name, kind = _FILES[path]
            return kind, (_PAGE / name).read_bytes()
        if match := _MODEL.fullmatch(path):
            name, version, label, wants_metadata = match.groups()
            if name is None:
                return _json(rest_api.models(self.core))
            answer = rest_api.metadata if wants_metadata else rest_api.status
            return _json(answer(self.core, rest_api.spec(name, version, label)))
        raise _HttpError(404, f"path {_shown(path)} does not exist.")

    def _post(self):
        deadline = time.monotonic() + self.seconds
        body = self._body()
        path = self._path()
        match = _METHOD.fullmatch(path)
        if match is None:
            raise _HttpError(404, f"path {_shown(path)} does not support POST.")
        name, version, label, method = match.groups()
        with self.core.request(name, method, "REST"):
            request = rest_api.read_body(body)
            spec = rest_api.spec(name, version, label)
            return _json(rest_api.ANSWERS[method](self.core, spec, request, deadline))

    def _path(self):
        if self.command == "GET" and self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True  # the body is not read
        try:
            return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path, errors="strict")
        except ValueError:
            raise _HttpError(400, "the path is not valid UTF-8.") from None

    def _options(self):
        if not self.allow_other_sites:
            raise _HttpError(405, "only GET and POST are supported.")
        return "text/plain", b""

    def _body(self):
        """Read the body of a request, unless it is too long."""
        lengths = self.headers.get_all("Content-Length", [])
        length = lengths[0] if len(lengths) == 1 and "Transfer-Encoding" not in self.headers else ""
        if not re.fullmatch(r"[0-9]{1,18}", length):
            self.close_connection = True
            raise _HttpError(411, "exactly one Content-Length header is required.")
        if int(length) > self.longest_body:
            self.close_connection = True
            raise _HttpError(
                413, f"the body must have at most {self.longest_body} bytes, got {length}."
            )
        encoding = self.headers.get("Content-Encoding", "identity")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the client has disconnected")
        if encoding.lower() != "identity":
            raise _HttpError(415, f"Content-Encoding {encoding[:50]!r} is not supported.")
        return body

    def _send(self, code, kind, body):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _CONTENT_POLICY)
        if self.allow_other_sites:
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
            self.send_header("Access-Control-Allow-Headers", "Content-Type")
        if self.closing.is_set():
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if code == 413:
            self._discard()

    def _discard(self):
        """Read and discard what the client still sends, for a few seconds.

        If the connection were closed while the client writes, the response would be lost.
        """
        self.connection.settimeout(1)
        end = time.monotonic() + 5
        with contextlib.suppress(OSError):
            while time.monotonic() < end and self.connection.recv(1 << 16):
                pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the errors of the base class as JSON."""
        self.close_connection = True
        self.request_version = self.protocol_version  # required to send a status
        phrases = http.server.BaseHTTPRequestHandler.responses.get(code, ("malformed request",))
        self._send(code, *_json({"error": str(message or phrases[0])[:200]}))

    def version_string(self) -> str:
        """Return the value of the Server header."""
        return "keras_llm"

    def log_message(self, form: str, *arguments: object) -> None:
        """Do nothing: requests are counted, not logged."""


class _HttpError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _json(value):
    # Escape non-ASCII characters: an error may contain a lone surrogate, which UTF-8 cannot encode.
    return "application/json", json.dumps(value).encode()


def _shown(path):
    return repr(path[:100])
