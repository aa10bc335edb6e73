"""Build the ASGI application of the server: the REST API, the metrics and the web page."""

import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from keras_llm.errors import ServingError
from keras_llm.export.serving.server import rest_api

if TYPE_CHECKING:
    from keras_llm.export.serving.server.core import Core

METRICS_PATH = "/monitoring/prometheus/metrics"
_PAGE = pathlib.Path(__file__).with_name("page")
_CONTENT_POLICY = "default-src 'self'; img-src data:; frame-ancestors 'none'"  # data: for the icon
_STATUS_CODES = {
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


def create_app(
    core: "Core",
    timeout: float = 30.0,
    max_body_bytes: int = 64 * 2**20,
    num_threads: int = 64,
    enable_cors: bool = False,
) -> Starlette:
    """Create the application.

    Args:
        core: `Core`.
        timeout: float. Maximum seconds for a request.
        max_body_bytes: int. Maximum size of the body of a request.
        num_threads: int. Number of worker threads, which run the models, and maximum number of
            concurrent requests.
        enable_cors: bool. Whether to allow requests from pages of other sites (CORS).
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = num_threads
        yield

    cors = Middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST"],
        allow_headers=["Content-Type"],
    )
    app = Starlette(
        routes=[
            *rest_api.routes(),
            Route(METRICS_PATH, _get_metrics),
            Mount("/", _Page(directory=_PAGE, html=True)),
        ],
        middleware=[*([cors] if enable_cors else []), Middleware(_RequestLimit, num_threads)],
        exception_handlers={
            ServingError: _serving_error,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _unexpected_error,
        },
        lifespan=lifespan,
    )
    app.state.core = core
    app.state.timeout = timeout
    app.state.max_body_bytes = max_body_bytes
    return app


class _RequestLimit:
    """Reject requests while the maximum number of them is running, except for the metrics."""

    def __init__(self, app: ASGIApp, maximum: int) -> None:
        self._app = app
        self._maximum = maximum
        self._num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == METRICS_PATH:
            await self._app(scope, receive, send)
        elif self._num_running >= self._maximum:
            message = f"{self._maximum} requests are running, which is the maximum."
            await rest_api.json_response({"error": message}, 503)(scope, receive, send)
        else:
            self._num_running += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._num_running -= 1


class _Page(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = _CONTENT_POLICY
        return response


async def _get_metrics(request: Request) -> Response:
    page = request.app.state.core.metrics.page()
    return PlainTextResponse(page, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _serving_error(request, error):
    return rest_api.json_response({"error": error.message}, _STATUS_CODES.get(error.code, 500))


async def _http_error(request, error):
    response = rest_api.json_response({"error": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _disconnected(request, error):
    return Response(status_code=_STATUS_CODES["CANCELLED"])  # the client has disconnected


async def _unexpected_error(request, error):
    message = "internal server error; see the server's log."
    return rest_api.json_response({"error": message}, 500)
