"""Programs that a model wrote, run where they can do no harm."""

import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time

from keras_llm.errors import InputError

_CHILD = pathlib.Path(__file__).with_name("sandbox_child.py")
_LONGEST = 200  # bytes of an answer


def run_program(source, seconds=5, megabytes=512):
    """Whether a Python program comes to its end without an error.

    It runs in a process of its own, in an empty folder and environment, with the standard library
    alone. The kernel holds it (see `sandbox_child`): it reads files, but writes, creates and
    removes none, starts no process, opens no socket and signals nobody; processor time, memory and
    the time on the clock are bounded. What it prints is not kept.

    Args:
        source: str, the program.
        seconds: int > 0, of processor time, and twice as many on the clock.
        megabytes: int > 0, of memory.

    Returns:
        Whether it passed, a bool, and how it ended: "passed", "failed <error>", "killed", or "out
        of time".

    Raises:
        InputError: if this system cannot hold it: not Linux 6.2 or later with Landlock and
            seccomp, on x86_64 or aarch64. Nothing of the program was run then.
    """
    if sys.platform != "linux":
        raise InputError(f"programs are run on Linux alone, which can hold them; {_otherwise()}")
    limits = json.dumps({"seconds": seconds, "megabytes": megabytes})
    command = [sys.executable, "-I", "-S", "-B", str(_CHILD), limits]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            process.stdin.write(source.encode())
            process.stdin.close()
            told = _answer(process.stdout, time.monotonic() + 2 * seconds + 5)
        except BrokenPipeError:
            told = b""
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    if told is None:
        return False, "out of time"
    told = told.decode(errors="replace")
    if not told.startswith("ready "):
        raise InputError(f"programs cannot be held here ({told or 'no answer'}); {_otherwise()}")
    end = told.removeprefix("ready ") or "killed"
    return end == "passed", end


def _answer(stream, deadline):
    """What the child says, of which a program can make no more than some bytes; None if it is not
    done by then."""
    told = b""
    while len(told) < _LONGEST:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            return None
        part = os.read(stream.fileno(), _LONGEST)
        if not part:
            break
        told += part
    return told


def _otherwise():
    return "leave out --execute."
