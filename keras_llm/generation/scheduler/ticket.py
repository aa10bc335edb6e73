"""What a caller holds of a request while an engine serves it."""

import concurrent.futures
import threading


class Ticket:
    """One request to an `Engine`. Any thread may use it; only the engine makes one.

    Iterating gives the new tokens as they come, from the first whenever one begins, and ends with
    the text; or raises what `result` raises.

    Attributes:
        finish_reason: "stop" (the stop token was chosen), "length" (the budget or the longest
            length was reached), or None as long as the text has not come to its end.
    """

    def __init__(self, prompt, budget, settings, on_token):
        self.finish_reason = None
        self._prompt = prompt
        self._budget = budget
        self._settings = settings
        self._on_token = on_token
        self._tokens = []
        self._error = None
        self._done = False
        self._changed = threading.Condition()

    def result(self, timeout=None):
        """Wait for the end of the text.

        Args:
            timeout: float, seconds, or None to wait as long as it takes.

        Returns:
            A list of int, the new tokens, without the stop token.

        Raises:
            TimeoutError: if it takes longer.
            concurrent.futures.CancelledError: if the request was cancelled, or the engine was
                closed before its end.
            InputError: if the model's logits are not numbers.
            Exception: what `on_token` raised, or what the engine broke of.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout):
                raise TimeoutError(f"the text had not come to its end after {timeout} s.")
            if self._error is not None:
                raise self._error
            return list(self._tokens)

    def __iter__(self):
        count = 0
        while True:
            new, done = self._after(count)
            yield from new
            count += len(new)
            if done:
                self.result()  # raises if there is something to raise
                return

    def cancel(self):
        """Give the request up; its slot is free again after the turn that is under way.

        Returns:
            Whether it was in time: False if the request had come to its end.
        """
        return self._end(error=concurrent.futures.CancelledError())

    def done(self):
        """Whether the text has come to its end, or the request was cancelled or failed."""
        with self._changed:
            return self._done

    def _after(self, count):
        """Wait for more than so many tokens, or the end; returns them, and whether it is that."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or len(self._tokens) > count)
            return self._tokens[count:], self._done

    def _add(self, token):
        """For the engine: one more token."""
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
        """For the engine: no more tokens; only the first end counts."""
        with self._changed:
            if self._done:
                return False
            self.finish_reason, self._error, self._done = finish_reason, error, True
            self._changed.notify_all()
            return True
