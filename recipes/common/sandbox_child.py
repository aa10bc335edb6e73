"""Run an untrusted program in a sandbox, and trusted tests of its functions in another process.

`sandbox.run_program` starts this file as a script, so it imports only the standard library. It
splits into two processes, which limit themselves permanently before the first line of the program:
memory and time; root privileges (root becomes nobody); Landlock (only the interpreter and the
system's libraries can be read, and no file can be written, created, removed, renamed or executed);
and seccomp (only the system calls of `_CALLS`, which change nothing outside the process).

The child process runs the program. It has two pipes to the parent: one with calls of the program's
functions, one for their values. The parent runs the tests and writes the result to stdout, which
the child does not have. So a program cannot claim that its tests passed: it only returns values,
copied as JSON, so that their methods, e.g. `__eq__`, are not run in the parent.

Argument 1 is a JSON object with `seconds` and `megabytes`; stdin is one with `program` and `tests`.
The script writes "ready" to stdout when both processes are limited, and "passed" if the program and
the tests end without an error.
"""

import builtins
import collections.abc
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

_END_WITH_PARENT, _KEEP_CAPABILITIES, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 1, 8, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_ADD_RULE, _PATH_BENEATH = 445, 1
_READ_FILE, _READ_FOLDER = 4, 8
_NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x08000000, 0x10000000, 0x40000000
_NOBODY = 65534
_CAPABILITIES = 0x20080522  # capset version 3
_READ_ANY_FILE = (4, 2)  # CAP_DAC_READ_SEARCH; CAP_DAC_OVERRIDE, which containers have instead

# Readable files and folders besides those of the interpreter.
_READABLE = (
    "/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/dev/null", "/dev/zero", "/dev/random",
    "/dev/urandom",
)  # fmt: skip

# The numbers of the permitted system calls. They read files, use memory, pipes and timers of this
# process, or return information. Those that could affect other processes or outlive this one are
# missing: processes, threads, signals, sockets, IPC, priorities, limits, locks, keys, mounts.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit number, column
_CALLS = {
    "access": (21, None), "alarm": (37, None), "brk": (12, 214), "chdir": (80, 49),
    "clock_getres": (229, 114), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "close": (3, 57), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_pwait": (281, 22),
    "epoll_wait": (232, None), "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48),
    "faccessat2": (439, 439), "fchdir": (81, 50), "fstat": (5, 80), "futex": (202, 98),
    "getcpu": (309, 168), "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177),
    "geteuid": (107, 175), "getgid": (104, 176), "getgroups": (115, 158), "getitimer": (36, 102),
    "getpgid": (121, 155), "getpgrp": (111, None), "getpid": (39, 172), "getppid": (110, 173),
    "getrandom": (318, 278), "getresgid": (120, 150), "getresuid": (118, 148),
    "getrlimit": (97, 163), "getrusage": (98, 165), "getsid": (124, 156), "gettid": (186, 178),
    "gettimeofday": (96, 169), "getuid": (102, 174), "lseek": (8, 62), "lstat": (6, None),
    "madvise": (28, 233), "mmap": (9, 222), "mprotect": (10, 226), "mremap": (25, 216),
    "munmap": (11, 215), "nanosleep": (35, 101), "newfstatat": (262, 79), "open": (2, None),
    "openat": (257, 56), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None),
    "ppoll": (271, 73), "pread64": (17, 67), "pselect6": (270, 72), "pwrite64": (18, 68),
    "read": (0, 63), "readlink": (89, None), "readlinkat": (267, 78), "readv": (19, 65),
    "restart_syscall": (219, 128), "rseq": (334, 293), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124), "select": (23, None), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "setitimer": (38, 103), "sigaltstack": (131, 132),
    "stat": (4, None), "statx": (332, 291), "sysinfo": (99, 179), "time": (201, None),
    "times": (100, 153), "uname": (63, 160), "write": (1, 64), "writev": (20, 66),
}  # fmt: skip
_FCNTL, _IOCTL, _PRLIMIT = (72, 25), (16, 29), (302, 261)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; the others send signals, lock and lease.
_FCNTL_COMMANDS, _SET_FLAGS, _ASYNC = (0, 1, 2, 3, 1030), 4, 0x2000
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_LIBC = ctypes.CDLL(None, use_errno=True)
_LONGEST_LINE = 1 << 24  # bytes of a value of the program


def main():
    limits = json.loads(sys.argv[1])
    task, report = os.dup(0), os.dup(1)
    call_reader, call_writer = os.pipe()
    value_reader, value_writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    is_child, refusal = False, ""
    try:
        limit(limits["seconds"], limits["megabytes"])
        is_child = os.fork() == 0
        of_parent, of_child = (call_writer, value_reader, task, report), (call_reader, value_writer)
        for one in of_parent if is_child else of_child:
            os.close(one)
        fence(is_child)
    except OSError as error:
        refusal = str(error)
    if is_child:
        run_program(os.fdopen(call_reader, "rb"), os.fdopen(value_writer, "wb"), refusal)
        return
    program = _Program(os.fdopen(call_writer, "wb"), os.fdopen(value_reader, "rb"))
    refusal = refusal or program.receive()
    os.write(report, refusal.encode() or b"ready ")
    if not refusal:
        with os.fdopen(task, "rb") as file:
            texts = json.loads(file.read())
        os.write(report, run_tests(program, texts["program"], texts["tests"]).encode())


def run_program(calls, values, refusal):
    """Run the program of the first line of `calls`, then its functions as the other lines ask."""

    def send(value):
        values.write(json.dumps(value).encode() + b"\n")
        values.flush()

    send(refusal)
    names = {"__name__": "__main__"}
    for number, line in enumerate(calls):
        call = json.loads(line)
        try:
            if number == 0:
                exec(compile(call, "<program>", "exec"), names)
                value = None
            else:
                value = names[call["name"]](*map(_decoded, call["args"]))
            send({"value": _encoded(value)})
        except BaseException as error:  # a program can raise anything
            send({"error": type(error).__name__})


def run_tests(program, source, tests):
    """Run a program and trusted tests, and return how it ended."""
    try:
        program.load(source)
        exec(compile(tests, "<tests>", "exec"), {"function": program.function})
    except _Killed:
        return ""
    except BaseException as error:  # also the errors of the program
        return f"failed {type(error).__name__}"
    return "passed"


class _Killed(BaseException):
    """The child has ended."""


class _Program:
    """The program in the child, whose functions can be called."""

    def __init__(self, calls, values):
        self._calls = calls
        self._values = values

    def load(self, source):
        self._call(source)

    def function(self, name):
        """Return a function that calls the function `name` of the program."""
        return lambda *args: self._call({"name": name, "args": [_encoded(arg) for arg in args]})

    def receive(self):
        """Return the next JSON value that the child sends."""
        line = self._values.readline(_LONGEST_LINE)
        if not line:
            raise _Killed
        return json.loads(line)

    def _call(self, call):
        try:
            self._calls.write(json.dumps(call).encode() + b"\n")
            self._calls.flush()
        except BrokenPipeError:
            raise _Killed from None
        answer = self.receive()
        if "error" not in answer:
            return _decoded(answer["value"])
        kind = getattr(builtins, answer["error"], None)
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            kind = type(answer["error"], (Exception,), {})
        raise kind.__new__(kind)  # the message stays in the child


def _encoded(value):
    """Return a value as JSON: a pair of the name of its type and its contents.

    Raises:
        TypeError: if it is not a str, bytes, number, None, list, tuple, dict or set.
    """
    if value is None:
        return "None", None
    if isinstance(value, (bool, float, str)):
        kind = next(kind for kind in (bool, float, str) if isinstance(value, kind))
        return kind.__name__, kind(value)
    if isinstance(value, int):
        return "int", hex(value)  # decimal digits are limited
    if isinstance(value, complex):
        return "complex", (value.real, value.imag)
    if isinstance(value, (bytes, bytearray)):
        return "bytes", value.hex()
    if isinstance(value, dict):
        return "dict", [(_encoded(key), _encoded(item)) for key, item in value.items()]
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind.__name__, [_encoded(item) for item in value]
    if isinstance(value, collections.abc.Set):
        return "frozenset", [_encoded(item) for item in value]
    raise TypeError(f"a value of type {type(value).__name__} cannot be copied")


def _decoded(pair):
    """Return the value of `_encoded`, which has no type of a program."""
    kind, contents = pair
    if kind == "None":
        return None
    if kind == "int":
        return int(contents, 16)
    if kind == "complex":
        return complex(*map(float, contents))
    if kind == "bytes":
        return bytes.fromhex(contents)
    if kind == "dict":
        return {_decoded(key): _decoded(item) for key, item in contents}
    if kind in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, kind)(map(_decoded, contents))
    return {"bool": bool, "float": float, "str": str}[kind](contents)


def limit(seconds, megabytes):
    """Limit the time, memory, privileges and files of this process and of those it starts.

    Raises:
        OSError: if the kernel does not support the limits.
    """
    for name, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(name, (limit, limit))
    _checked(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    _drop_privileges()
    _landlock()


def fence(is_child):
    """Limit the system calls of this process, and let it end with its parent.

    Raises:
        OSError: if the kernel does not support the limits.
    """
    # After the change of the user, which would undo it.
    _checked(_LIBC.prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    if is_child:
        _landlock()  # a domain in that of the parent, which may end the child, not vice versa
    _seccomp()
    with open(os.__file__, "rb") as file:  # otherwise no program could import a module
        file.read(1)


def _drop_privileges():
    """Leave the network and IPC namespaces where permitted; drop root and capabilities.

    Root keeps one capability to read any file, because the interpreter may be in a folder of root.
    Landlock limits what can be read and forbids all writing, whatever the capability permits.
    """
    is_root = os.geteuid() == 0
    _LIBC.unshare(_NEW_NETWORK | _NEW_IPC | (0 if is_root else _NEW_USER))  # additional isolation
    if is_root:
        _checked(_LIBC.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0), "keepcaps")
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITIES, 0), 8)
    sets = ctypes.create_string_buffer(24)  # effective, permitted and inheritable, twice
    _checked(_LIBC.capget(header, sets), "capget")
    permitted = struct.unpack("<6I", sets)[1] if is_root else 0
    kept = next((one for one in _READ_ANY_FILE if one & permitted), 0)
    sets = ctypes.create_string_buffer(struct.pack("<6I", kept, kept, 0, 0, 0, 0), 24)
    _checked(_LIBC.capset(header, sets), "capset")


def _landlock():
    version = _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 3:
        raise OSError("the kernel does not support Landlock version 3 (Linux 6.2 or later)")
    files = 0xFFFF if version >= 5 else 0x7FFF  # every right; version 5 adds ioctl of devices
    tcp = 3 if version >= 4 else 0  # bind and connect
    outside = 3 if version >= 6 else 0  # signals and abstract Unix sockets of other processes
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = ctypes.create_string_buffer(struct.pack("<3Q", files, tcp, outside)[:size], size)
    ruleset = _LIBC.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    _checked(ruleset, "Landlock")
    for path in (".", sys.base_prefix, sys.base_exec_prefix, *sys.path, *_READABLE):
        if os.path.exists(path):
            _permit_reading(ruleset, path)
    _checked(_LIBC.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    os.close(ruleset)


def _permit_reading(ruleset, path):
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rights = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
    rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, place), 12)
    _checked(_LIBC.syscall(_LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), "Landlock")
    os.close(place)


def _seccomp():
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"unsupported machine {machine}")
    code = b"".join(struct.pack("<HBBI", *line) for line in _filter(*_MACHINES[machine]))
    lines = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("<H6xQ", len(code) // 8, ctypes.addressof(lines))
    _checked(_LIBC.prctl(_SET_SECCOMP, 2, ctypes.create_string_buffer(head), 0, 0), "seccomp")


def _filter(architecture, column):
    """Return the lines of a BPF program that permits the system calls of a machine."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    kill, refuse, allow = (
        (give, 0, 0, action) for action in (0x80000000, 0x00050001, 0x7FFF0000)
    )  # refuse: EPERM
    number, machine, argument = 0, 4, (16, 24, 32)

    def if_equal(value, *then):  # continue after `then` otherwise
        return [(equal, 0, len(then), value), *then]

    def loaded(offset):
        return (load, 0, 0, offset)

    program = [loaded(machine), (equal, 1, 0, architecture), kill, loaded(number)]
    for numbers in _CALLS.values():
        if numbers[column] is not None:
            program += if_equal(numbers[column], allow)
    flags = [loaded(argument[2]), (any_bit, 0, 1, _ASYNC), refuse, allow]
    commands = if_equal(_SET_FLAGS, *flags)
    commands += [line for one in _FCNTL_COMMANDS for line in if_equal(one, allow)]
    program += if_equal(_FCNTL[column], loaded(argument[1]), *commands, refuse)
    commands = [line for one in _IOCTL_COMMANDS for line in if_equal(one, allow)]
    program += if_equal(_IOCTL[column], loaded(argument[1]), *commands, refuse)
    # prlimit may only read limits of this process: argument 0 is 0 and argument 2 is NULL.
    reads = [allow]
    for half in (argument[0], argument[2], argument[2] + 4):
        reads = [loaded(half), *if_equal(0, *reads)]
    program += if_equal(_PRLIMIT[column], *reads, refuse)
    return [*program, refuse]


def _checked(result, name):
    if result < 0:
        raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
