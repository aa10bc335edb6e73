"""Record Ctrl-C, so that compiled code cannot swallow it.

Python raises KeyboardInterrupt at the current point of the main thread. If that is a callback from
C++ or a destructor, the exception is converted or dropped, and the program continues.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

_seen: list[int] = []


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Yield a list that records each SIGINT, which still raises KeyboardInterrupt."""
    previous = signal.getsignal(signal.SIGINT)
    _seen.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or previous is not signal.default_int_handler:  # keep a custom or ignored signal
        yield _seen
        return

    def record(number, frame):
        _seen.append(number)
        previous(number, frame)

    signal.signal(signal.SIGINT, record)
    try:
        yield _seen
    finally:
        signal.signal(signal.SIGINT, previous)
        _seen.clear()


def check() -> None:
    """Raise KeyboardInterrupt if `noted` recorded one that was swallowed. Call it in long loops."""
    if _seen:
        raise KeyboardInterrupt
