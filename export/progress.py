"""Where the time of an export goes: a bar for large models, and the seconds of the report."""

import contextlib
import sys
import time

_LARGE = 50_000_000  # weights; smaller models are done before one looks
# Phases and their shares of the bar.
_SHARES = {"trace": 8, "lower": 12, "quantize": 10, "write": 30, "verify": 40}


class Progress:
    """The phases of an export, as a context manager.

    Args:
        title: str, what is written.
        parameters: int, the weights of the model. With many, a terminal shows a bar on stderr.

    Attributes:
        seconds: dict from a phase to the seconds that it took, waiting for other processes
            included.
    """

    def __init__(self, title, parameters):
        self.seconds, self._bar, self._task = {}, None, None
        self._title, self._left = title, dict(_SHARES)
        if parameters >= _LARGE and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=sum(_SHARES.values()))
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    @contextlib.contextmanager
    def phase(self, name):
        """Count the seconds of what is done inside; a phase may come in several parts."""
        begin = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title}: {name}")
        try:
            yield
        finally:
            seconds = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            self.seconds[name] = round(seconds, 2)

    def part(self, name, share):
        """Move the bar by a part of a phase, a number in 0 .. 1 of all of it."""
        if self._bar is not None:
            step = min(self._left[name], share * _SHARES[name])
            self._left[name] -= step
            self._bar.advance(self._task, step)
