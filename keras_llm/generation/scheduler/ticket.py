"""Wait for, stream or cancel a request to an engine."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator

from keras_llm.generation.loop import Request


class Ticket:
    """A request to an `Engine`. Thread-safe; returned by `Engine.submit`.

    Iterating yields all new tokens from the first one as they are generated, and raises the
    exceptions of `result`.

    Attributes:
        finish_reason: "stop" (the stop token was chosen), "length" (the budget or `max_length` was
            reached), or None while the request is not complete.
    """

    def __init__(
        self,
        request: Request,
        on_token: Callable[[int], object] | None,
    ) -> None:
        self.finish_reason: str | None = None
        self._request = request
        self._on_token = on_token
        self._tokens: list[int] = []
        self._error: BaseException | None = None
        self._done = False
        self._changed = threading.Condition()

    def result(self, timeout: float | None = None) -> list[int]:
        """Wait until the request is complete.

        Args:
            timeout: float, seconds; None waits without limit.

        Returns:
            A list of int, the new tokens, without the stop token.

        Raises:
            TimeoutError: if the request is not complete after `timeout` seconds.
            concurrent.futures.CancelledError: if the request was cancelled, or the engine was
                closed before it was complete.
            InputError: if the model's logits are NaN.
            Exception: raised by `on_token`, or RuntimeError if the engine failed.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout):
                raise TimeoutError(f"the request was not complete after {timeout} s.")
            if self._error is not None:
                raise self._error
            return list(self._tokens)

    def __iter__(self) -> Iterator[int]:
        count = 0
        while True:
            new, done = self._after(count)
            yield from new
            count += len(new)
            if done:
                self.result()  # raises the request's error, if any
                return

    def cancel(self) -> bool:
        """Cancel the request; its slot is freed after the current turn.

        Returns:
            Bool, whether the request was cancelled; False if it was already complete.
        """
        return self._end(error=concurrent.futures.CancelledError())

    def done(self) -> bool:
        """Return whether the request is complete, was cancelled or failed."""
        with self._changed:
            return self._done

    def _after(self, count):
        """Wait for more than `count` tokens or the end; return new tokens and whether it ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or len(self._tokens) > count)
            return self._tokens[count:], self._done

    def _add(self, token):
        """Add a token (called by the engine)."""
        with self._changed:
            if self._done:
                return
            self._tokens.append(token)
            self._changed.notify_all()
        if self._on_token is not None:
            try:
                self._on_token(token)
            except Exception as error:
                self._end(error=error)

    def _end(self, finish_reason=None, error=None):
        """End the request unless it has ended (called by the engine); return whether it did."""
        with self._changed:
            if self._done:
                return False
            self.finish_reason, self._error, self._done = finish_reason, error, True
            self._changed.notify_all()
            return True
