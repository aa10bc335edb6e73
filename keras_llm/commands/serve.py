"""`keras-llm serve`."""

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
from keras_llm.export.serving.server.options import ServerOptions


@dataclasses.dataclass
class Options(ServerOptions):
    """Serve SavedModels as TensorFlow Serving does, on a laptop or in a test."""

    base_path: tyro.conf.Positional[str] = ""
    """Folder of a served model, with a folder for each version; short for --model_base_path."""


def run(options):
    if options.base_path:
        if options.model_base_path:
            raise InputError("give the folder once: BASE_PATH or --model_base_path.")
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
    where = f"gRPC at {options.host}:{server.port}"
    if server.rest_api_port:
        where += f", REST and a page at http://{options.host}:{server.rest_api_port}"
    print(where, file=sys.stderr, flush=True)
    stop.wait()
    print("shutting down: answering what has come in", file=sys.stderr, flush=True)
    if not server.close():
        print("requests still ran after the time of grace: they are cut off", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # a graph that runs cannot be stopped, and Python would wait for it


def _share_heaps():
    """Have glibc's threads share two heaps, and give what is large back at once.

    A heap keeps what its largest request took, and a heap for each thread, the default, keeps it
    many times over.
    """
    most_arenas, mmap_threshold = -8, -3  # M_ARENA_MAX and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(most_arenas, 2)
        mallopt(mmap_threshold, 2**20)
