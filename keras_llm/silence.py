"""Silence for libraries in C++ that write to stderr whatever they are told."""

import contextlib
import os
import sys


@contextlib.contextmanager
def silent_stderr():
    """Drop what libraries in C++ write to stderr; Python's exceptions come through."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
