"""Serve SavedModels locally: `keras-llm serve`."""

import contextlib
import ctypes
import dataclasses
import logging
import os
import signal
import sys
import threading

import tyro

from keras_llm.commands.console import import_tensorflow
from keras_llm.errors import InputError
from keras_llm.export.serving.server.options import ServerOptions, bracketed


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
    _share_heaps()
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
    stop.wait()
    print("shutting down: finishing pending requests", file=sys.stderr, flush=True)
    if not server.close():
        print("requests still running after the grace period are aborted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # Python would wait for the running graph, which cannot be interrupted


def _share_heaps():
    """Limit glibc to two heaps shared by all threads, and return large blocks immediately.

    A heap keeps the memory of its largest request. By default each thread has its own heap, which
    multiplies this memory.
    """
    max_arenas, mmap_threshold = -8, -3  # M_ARENA_MAX and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError):  # C libraries other than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(max_arenas, 2)
        mallopt(mmap_threshold, 2**20)
