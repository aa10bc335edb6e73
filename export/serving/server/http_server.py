"""Run the ASGI application on uvicorn, and close the connections of clients that do nothing."""

import asyncio
import json
import logging
import os
import socket
import threading
import time
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_llm.errors import InputError
from keras_llm.export.serving.server.options import bracketed

_IDLE_SECONDS = 60  # maximum time from a response, or from the connection, to the next request
_MIN_BYTES_PER_SECOND = 100_000  # a client must read a response at this rate after that time
_LOGGER = logging.getLogger("keras_llm.serve.http")
_LOGGER.setLevel(logging.ERROR)  # requests that are not HTTP are warnings


class HTTPServer(uvicorn.Server):
    """An HTTP server in a thread.

    Args:
        app: the application.
        host: str. Address to listen on; `::` includes IPv4.
        port: int. 0 selects a free port.

    Attributes:
        port: int.

    Raises:
        InputError: if it cannot listen on the port.
    """

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        # Without `log_level` and with `access_log`, uvicorn does not change its global loggers.
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
        )
        super().__init__(config)
        listener = _listen(host, port)
        self.port = listener.getsockname()[1]
        self._grace = 0.0
        self._thread = threading.Thread(
            target=self.run, args=([listener],), name="rest", daemon=True
        )
        self._thread.start()
        while not self.started and self._thread.is_alive():
            time.sleep(0.01)
        if not self.started:
            listener.close()
            raise RuntimeError("the REST server could not be started.")

    def close(self, grace: float) -> None:
        """Finish the running requests, and cancel them after `grace` seconds."""
        self._grace = grace
        self.should_exit = True
        self._thread.join()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and wait until there are no connections; called by uvicorn."""
        cancellation = asyncio.create_task(self._cancel_requests())
        await super().shutdown(sockets)
        cancellation.cancel()

    async def _cancel_requests(self):
        await asyncio.sleep(self._grace)
        for connection in list(self.server_state.connections):
            if connection.transport.get_write_buffer_size():  # the client does not read
                connection.transport.abort()
        await asyncio.sleep(0.01)
        for task in self.server_state.tasks:
            task.cancel()
        await asyncio.sleep(0.1)  # they respond with 503
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Connection(H11Protocol):
    """A connection that is closed if its client sends or reads too slowly, or not at all.

    The line and headers of a request must be complete, and the previous response must be read,
    before a deadline, however many bytes arrive until then. The application limits the time for the
    body and the answer. uvicorn itself has a timeout only for the first byte of the second and
    later requests.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = _LOGGER
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._timer.cancel()
        self._limit()
        super().on_response_complete()  # may start the next request

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # a response was sent
            self.transport.abort()
            return
        headers = [("Content-Type", "application/json"), ("Connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=json.dumps({"error": msg}).encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _limit(self):
        """Start the time for reading the response and for sending the next request."""
        seconds = _IDLE_SECONDS + self.transport.get_write_buffer_size() / _MIN_BYTES_PER_SECOND
        self._timer = self.loop.call_later(seconds, self._close_if_slow)

    def _close_if_slow(self):
        is_running = self.cycle is not None and not self.cycle.response_complete
        if not is_running or self.transport.get_write_buffer_size():
            self.transport.abort()


def _listen(host, port):
    is_ipv6 = ":" in host
    try:
        listener = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=128,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # `strerror` of `create_server` repeats the address
        raise InputError(
            f"`rest_api_port`: cannot listen on {bracketed(host)}:{port} ({reason})."
        ) from None
    # Connections inherit it; asyncio does not set it for the sockets of `create_server`.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
