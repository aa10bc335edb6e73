"""Ctrl-C that compiled code cannot lose.

Python raises KeyboardInterrupt wherever the main thread happens to be. Where that is a call out of
C++ or a destructor, the exception becomes another one or is dropped, and the program goes on.
"""

import contextlib
import signal
import threading

_seen = []


@contextlib.contextmanager
def noted():
    """A list of the SIGINTs that came; each raises KeyboardInterrupt as it always does."""
    usual = signal.getsignal(signal.SIGINT)
    _seen.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or usual is not signal.default_int_handler:  # ignored, or somebody else's
        yield _seen
        return

    def note(number, frame):
        _seen.append(number)
        usual(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield _seen
    finally:
        signal.signal(signal.SIGINT, usual)
        _seen.clear()


def check():
    """For long loops. Raises KeyboardInterrupt if there was one inside `noted` and it got lost."""
    if _seen:
        raise KeyboardInterrupt
