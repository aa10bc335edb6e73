"""Serve SavedModels locally: `keras-llm serve`."""

import ctypes
import dataclasses
import logging
import os
import pathlib
import signal
import sys
import threading

import tyro

from keras_llm.commands.console import import_tensorflow
from keras_llm.errors import InputError
from keras_llm.export.serving.server.options import ServerOptions, bracketed

_TRIM_SECONDS = 0.2  # interval of looking for memory to return
_TRIM_BYTES = 8 * 2**20  # growth after which memory is returned


@dataclasses.dataclass
class Options(ServerOptions):
    """Serve SavedModels locally with the API of TensorFlow Serving."""

    base_path: tyro.conf.Positional[str] = ""
    """Folder of a model with a subfolder per version; short for --model_base_path."""


def run(options):
    if options.base_path:
        if options.model_base_path:
            raise InputError("BASE_PATH and --model_base_path cannot both be set.")
        options.model_base_path = options.base_path
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("keras_llm.serve").setLevel(logging.INFO)
    trim = _share_heaps()
    # Each thread of oneDNN's kernels keeps up to 1,024 shapes, about 0.4 MB each: with prompts of
    # all lengths, gigabytes. Texts are not generated faster with them.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import_tensorflow()
    from keras_llm.export.serving.server import LocalServer

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = LocalServer(options)
    for name, versions in server.models().items():
        print(f"serving {name}, version {', '.join(map(str, versions))}", file=sys.stderr)
    host = bracketed(options.host)
    addresses = f"gRPC at {host}:{server.port}"
    if server.rest_api_port:
        addresses += f", REST and a page at http://{host}:{server.rest_api_port}"
    print(addresses, file=sys.stderr, flush=True)
    _wait(stop, trim)
    print("shutting down: finishing pending requests", file=sys.stderr, flush=True)
    if not server.close():
        print("requests still running after the grace period are aborted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # Python would wait for the running graph, which cannot be interrupted


def _share_heaps():
    """Limit glibc to two heaps shared by all threads, and return large blocks immediately.

    A heap keeps the memory of its largest request. By default each thread has its own heap, which
    multiplies this memory.

    Returns:
        The function `malloc_trim`, which returns the free parts of the heaps; None without glibc.
    """
    max_arenas, mmap_threshold = -8, -3  # M_ARENA_MAX and M_MMAP_THRESHOLD of malloc.h
    try:
        library = ctypes.CDLL(None)
        library.mallopt(max_arenas, 2)
        library.mallopt(mmap_threshold, 2**20)
        return library.malloc_trim
    except (AttributeError, OSError):  # C libraries other than glibc
        return None


def _wait(stop, trim):
    """Wait for `stop`; return the memory of large requests, which gRPC reads in small blocks."""
    kept = 0
    while not stop.wait(_TRIM_SECONDS if trim else None):
        used = _resident_bytes()
        if used > kept + _TRIM_BYTES:
            trim(0)
            kept = _resident_bytes()
        kept = min(kept, used)


def _resident_bytes():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
