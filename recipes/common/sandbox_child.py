"""Runs a program that nobody trusts: the lines of stdin, fenced in by the kernel.

Started by `sandbox.run_program` as a script of its own, so it imports the standard library alone.
Limits on memory and time, Landlock (nothing is written, created, removed, renamed or executed) and
seccomp (no process or socket is made, no signal sent, no file's mode changed) are put on this
process for good before the program's first line. Argument 1 is a JSON object of `seconds` and
`megabytes`. "ready" is written to stdout when the fence stands, and "passed" when the program has
come to its end.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

_NO_NEW_PRIVILEGES, _SET_SECCOMP = 38, 22
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_FORBIDDEN_ACCESS = 0xFFF3  # all rights of Landlock's third version and device ioctl, but reading
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000

# System calls that are refused: processes, sockets, signals, what changes files without opening
# them, other processes' memory, mounts, and io_uring, which goes round filters.
_CALLS = {
    "x86_64": (0xC000003E, [
        41, 42, 49, 50, 53, 56, 57, 58, 59, 62, 76, 90, 91, 92, 93, 94, 101, 129, 132, 154, 155,
        157, 161, 164, 165, 166, 167, 168, 169, 170, 171, 188, 189, 190, 197, 198, 199, 200, 227,
        234, 235, 246, 248, 249, 250, 260, 261, 268, 272, 280, 288, 297, 298, 308, 310, 311, 317,
        321, 322, 323,
    ]),
    "aarch64": (0xC00000B7, [
        5, 6, 7, 14, 15, 16, 39, 40, 41, 45, 51, 52, 53, 54, 55, 88, 97, 104, 112, 117, 129, 130,
        131, 138, 142, 161, 162, 167, 170, 198, 199, 200, 201, 202, 203, 217, 218, 219, 220, 221,
        224, 225, 240, 241, 242, 268, 270, 271, 277, 280, 281, 282,
    ]),
}  # fmt: skip
_EVERYWHERE = [424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 435, 438, 440, 442, 452, 463]
_LIBC = ctypes.CDLL(None, use_errno=True)


def main():
    limits = json.loads(sys.argv[1])
    source = sys.stdin.read()
    told = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    try:
        fence(limits["seconds"], limits["megabytes"])
    except OSError as error:
        os.write(told, f"no fence: {error}".encode())
        return
    os.write(told, b"ready ")
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # of a program anything may come
        os.write(told, f"failed {type(error).__name__}".encode())
    else:
        os.write(told, b"passed")


def fence(seconds, megabytes):
    """Put the limits on this process.

    Raises:
        OSError: if the kernel has not what it takes.
    """
    for name, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(name, (limit, limit))
    _LIBC.unshare(_NEW_USER | _NEW_NETWORK)  # one wall more where users may; the rest stands alone
    _checked(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    _landlock()
    _seccomp()


def _landlock():
    version = _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 3:
        raise OSError("the kernel has no Landlock of version 3 or later (Linux 6.2)")
    rights = _FORBIDDEN_ACCESS if version >= 5 else _FORBIDDEN_ACCESS & 0x7FFF
    attributes = ctypes.create_string_buffer(struct.pack("<Q", rights), 8)
    ruleset = _LIBC.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(8), 0)
    _checked(ruleset, "Landlock")
    _checked(_LIBC.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    os.close(ruleset)


def _seccomp():
    machine = platform.machine()
    if machine not in _CALLS:
        raise OSError(f"no list of system calls for {machine}")
    architecture, calls = _CALLS[machine]
    calls = [*calls, *_EVERYWHERE]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050001, 0x7FFF0000  # refuse: EPERM
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, len(calls) + 1, 0, 0x40000000),  # the numbers of another ABI
        *((equal, len(calls) - i, 0, call) for i, call in enumerate(calls)),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    code = b"".join(struct.pack("<HBBI", *line) for line in program)
    lines = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("<H6xQ", len(program), ctypes.addressof(lines))
    _checked(_LIBC.prctl(_SET_SECCOMP, 2, ctypes.create_string_buffer(head), 0, 0), "seccomp")


def _checked(result, name):
    if result < 0:
        raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
