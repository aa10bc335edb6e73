"""Show the progress of an export and measure the seconds of its phases for the report."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

_LARGE = 50_000_000  # weights; exports of smaller models are too fast for a progress bar
# Phases and their shares of the progress bar.
_SHARES = {"trace": 8, "lower": 12, "quantize": 10, "write": 30, "verify": 40}


class Progress:
    """The phases of an export, as a context manager.

    Args:
        title: str. Name of the file or folder that is written.
        parameters: int. Number of weights of the model. For a large model, a progress bar is
            shown on stderr if that is a terminal.

    Attributes:
        seconds: dict that maps a phase to its seconds, including the wait for other processes.
    """

    def __init__(self, title: str, parameters: int) -> None:
        self.seconds: dict[str, float] = {}
        self._bar: Any = None
        self._task: Any = None
        self._title = title
        self._left: dict[str, float] = dict(_SHARES)
        if parameters >= _LARGE and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=sum(_SHARES.values()))
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent in the `with` block to a phase; a phase may have several blocks."""
        begin = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title}: {name}")
        try:
            yield
        finally:
            seconds = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            self.seconds[name] = round(seconds, 2)

    def part(self, name: str, share: float) -> None:
        """Advance the progress bar by a share of a phase, a number in 0 .. 1."""
        if self._bar is not None:
            step = min(self._left[name], share * _SHARES[name])
            self._left[name] -= step
            self._bar.advance(self._task, step)
