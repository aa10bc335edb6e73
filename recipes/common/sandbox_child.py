"""Run an untrusted program from stdin in a sandbox.

`sandbox.run_program` starts this file as a script, so it imports only the standard library. Before
the first line of the program it limits this process permanently: memory and time; Landlock (no
file can be written, created, removed, renamed or executed); and seccomp (no new process or socket,
no signals, no change of file modes). Argument 1 is a JSON object with `seconds` and `megabytes`.
The script writes "ready" to stdout when the sandbox is active, and "passed" when the program ends.
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
_FORBIDDEN_ACCESS = 0xFFF3  # all Landlock version 3 rights and device ioctl, except reading
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000

# Forbidden system calls: processes, sockets, signals, changing files without opening them, memory
# of other processes, mounts, and io_uring, which bypasses filters.
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
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        fence(limits["seconds"], limits["megabytes"])
    except OSError as error:
        os.write(report, str(error).encode())
        return
    os.write(report, b"ready ")
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # a program can raise anything
        os.write(report, f"failed {type(error).__name__}".encode())
    else:
        os.write(report, b"passed")


def fence(seconds, megabytes):
    """Limit this process.

    Raises:
        OSError: if the kernel does not support the limits.
    """
    for name, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(name, (limit, limit))
    _LIBC.unshare(_NEW_USER | _NEW_NETWORK)  # optional additional isolation; may not be permitted
    _checked(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    _landlock()
    _seccomp()


def _landlock():
    version = _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 3:
        raise OSError("the kernel does not support Landlock version 3 (Linux 6.2 or later)")
    rights = _FORBIDDEN_ACCESS if version >= 5 else _FORBIDDEN_ACCESS & 0x7FFF
    attributes = ctypes.create_string_buffer(struct.pack("<Q", rights), 8)
    ruleset = _LIBC.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(8), 0)
    _checked(ruleset, "Landlock")
    _checked(_LIBC.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    os.close(ruleset)


def _seccomp():
    machine = platform.machine()
    if machine not in _CALLS:
        raise OSError(f"unsupported machine {machine}")
    architecture, calls = _CALLS[machine]
    calls = [*calls, *_EVERYWHERE]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050001, 0x7FFF0000  # refuse: EPERM
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, len(calls) + 1, 0, 0x40000000),  # system call numbers of another ABI
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
