"""Cancel gRPC calls whose request message does not arrive, each of which occupies a thread."""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

_CHECK_SECONDS = 1.0


class MessageTimeout(grpc.ServerInterceptor):
    """Cancel calls whose message has not arrived after `seconds`, until `close`.

    The service classes of gRPC wait for the message without a limit before they call a method, so
    this waits for it itself, as if the message were the first of a stream.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="message-timeout", daemon=True)
        self._thread.start()

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler

        def call(messages, context):
            self._waiting[id(context)] = (time.monotonic() + self._seconds, context)
            try:
                message = next(messages, None)
            finally:
                del self._waiting[id(context)]
            if message is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message.")
            return handler.unary_unary(message, context)

        return grpc.stream_unary_rpc_method_handler(
            call, handler.request_deserializer, handler.response_serializer
        )

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(_CHECK_SECONDS):
            now = time.monotonic()
            for deadline, context in list(self._waiting.values()):
                if deadline < now:
                    context.cancel()
