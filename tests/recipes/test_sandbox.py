"""Test the sandbox: hostile programs fail without side effects, harmless ones pass."""

import importlib.util
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import pytest

from keras_llm.errors import InputError
from keras_llm.recipes.common import code_evaluation, sandbox


def test_program_passes_or_fails():
    harmless = "import collections, heapq, math, random, re, typing\nassert math.gcd(12, 18) == 6"
    assert sandbox.run_program(harmless) == (True, "passed")
    assert sandbox.run_program("assert 1 == 2") == (False, "failed AssertionError")
    assert sandbox.run_program("def f(:") == (False, "failed SyntaxError")
    assert sandbox.run_program("print('x' * 10**6)") == (True, "passed")


@pytest.mark.parametrize(
    "program, end",
    [
        ("while True: pass", ("killed", "out of time")),
        ("import time; time.sleep(60)", ("out of time",)),
        ("x = bytearray(10**10)", ("failed MemoryError",)),
        ("raise SystemExit(0)", ("failed SystemExit",)),
        ("import os; os._exit(0)", ("killed",)),
        ("import os; os.fork()", ("failed PermissionError",)),
        ("import subprocess; subprocess.run(['true'])", ("failed PermissionError",)),
        ("import socket; socket.socket()", ("failed PermissionError",)),
        ("import os; os.kill(os.getppid(), 9)", ("failed PermissionError",)),
        ("import os\nwhile True: os.write(3, b'x' * 9999)", None),
        ("import ctypes; ctypes.string_at(0)", ("killed",)),
        ("import os; os.abort()", ("killed",)),
        ("import threading; threading.Thread(target=print).start()", ("failed RuntimeError",)),
    ],
)
def test_hostile_program_is_stopped(program, end):
    passed, told = sandbox.run_program(program, seconds=1)
    assert not passed and (end is None or told in end)
    assert len(told) < 1000


def test_program_with_a_surrogate_fails():
    assert sandbox.run_program("x = '\ud800'") == (False, "failed UnicodeEncodeError")


def test_files_cannot_be_changed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("keep")
    before = victim.stat()
    for action in (
        "open(victim, 'w')",
        "open(victim, 'a')",
        "open(victim + '2', 'x')",
        "os.open(victim, os.O_RDONLY | os.O_TRUNC)",
        "os.remove(victim)",
        "os.rename(victim, victim + '3')",
        "os.truncate(victim, 0)",
        "os.chmod(victim, 0)",
        "os.utime(victim)",
        "os.link(victim, victim + '4')",
        "os.symlink(victim, victim + '5')",
        "os.mkdir(victim + '6')",
        "open('here', 'w')",
    ):
        program = f"import os\nvictim = {str(victim)!r}\ntry:\n    {action}\n"
        program += "except OSError: pass\nelse: raise ValueError"
        assert sandbox.run_program(program) == (True, "passed"), action
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    after = victim.stat()
    assert victim.read_text() == "keep" and after.st_mode == before.st_mode
    assert after.st_mtime_ns == before.st_mtime_ns


HELPERS = """import ctypes, fcntl, mmap, os, resource, signal, socket, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
pipe = os.pipe()
"""

# Each must be refused. `victim` is the id of another process of the caller.
ESCAPES = {
    "signals": [
        "os.kill(victim, 9)",
        "os.kill(victim, 0)",
        "os.kill(-1, 9)",
        "os.killpg(victim, 9)",
        "os.kill(os.getpid(), 9)",
        "signal.pidfd_send_signal(os.pidfd_open(victim), 9)",
        "call('tgkill', victim, victim, 9)",
        "call('sigqueue', victim, 9, 0)",
        "fcntl.fcntl(pipe[0], fcntl.F_SETOWN, victim)",
        "fcntl.fcntl(pipe[0], 15, struct.pack('ii', 1, victim))",  # F_SETOWN_EX
        "fcntl.fcntl(pipe[0], 10, signal.SIGKILL)",  # F_SETSIG
        "fcntl.fcntl(pipe[0], fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)",
        "fcntl.ioctl(pipe[0], 0x8901, struct.pack('i', victim))",  # FIOSETOWN
        "fcntl.ioctl(pipe[0], 0x8902, struct.pack('i', victim))",  # SIOCSPGRP
        "fcntl.ioctl(pipe[0], 0x5452, struct.pack('i', 1))",  # FIOASYNC
        "fcntl.fcntl(pipe[0], fcntl.F_NOTIFY, 1)",
        "call('timer_create', 0, None, ctypes.create_string_buffer(8))",
        "signal.raise_signal(signal.SIGTERM)",
    ],
    "other processes": [
        "call('ptrace', 16, victim, 0, 0)",
        "call('ptrace', 0x4206, victim, 0, 0)",
        "call('process_vm_readv', victim, None, 0, None, 0, 0)",
        "call('process_vm_writev', victim, None, 0, None, 0, 0)",
        "os.pidfd_open(victim)",
        "os.setpriority(os.PRIO_PROCESS, victim, 19)",
        "os.nice(1)",
        "os.sched_setaffinity(victim, {0})",
        "os.sched_setscheduler(victim, os.SCHED_IDLE, os.sched_param(0))",
        "call('syscall', ioprio_set, 1, victim, 3 << 13)",
        "resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1))",
        "resource.prlimit(victim, resource.RLIMIT_CPU)",
        "resource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
        "os.setpgid(victim, 0)",
        "os.setsid()",
        "os.waitpid(victim, os.WNOHANG)",
        "open(f'/proc/{victim}/environ')",
        "open(f'/proc/{victim}/cmdline')",
        "open(f'/proc/{victim}/mem', 'r+b')",
        "open(f'/proc/{victim}/oom_score_adj', 'w')",
        "open(f'/proc/{victim}/fd/0')",
        "os.readlink(f'/proc/{victim}/cwd')",
        "os.chdir(f'/proc/{victim}/cwd')",
        "os.listdir(f'/proc/{victim}/root/')",
        "open('/proc/sysrq-trigger', 'w')",
        "open('/dev/mem', 'rb')",
        "open('/dev/tty')",
    ],
    "new processes and threads": [
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "call('vfork')",
        "call('unshare', 0x10000000)",
        "call('unshare', 0x08000000)",
        "call('setns', 0, 0)",
        "os.setuid(0)",
        "os.setresuid(0, 0, 0)",
        "os.setgroups([0])",
        "call('mount', b'none', b'/', None, 0, None)",
        "call('umount2', b'/proc', 0)",
        "os.chroot('/')",
        "call('personality', 0)",
        "call('prctl', 4, 1, 0, 0, 0)",
        "call('reboot', 0)",
        "call('sethostname', b'x', 1)",
    ],
    "what stays": [
        "call('shmget', 0, 1 << 20, 0o1600)",
        "call('semget', 0, 1, 0o1600)",
        "call('msgget', 0, 0o1600)",
        "call('mq_open', b'/sandbox', os.O_CREAT | os.O_RDWR, 0o600, None)",
        "call('shm_open', b'/sandbox', os.O_CREAT | os.O_RDWR, 0o600)",
        "os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR)",
        "os.memfd_create('sandbox')",
        "os.eventfd(0)",
        "os.mkfifo('/tmp/sandbox')",
        "os.splice(pipe[0], pipe[1], 1)",
        "fcntl.fcntl(pipe[0], 1031, 1 << 20)",  # F_SETPIPE_SZ
        "call('syscall', add_key, b'user', b'sandbox', b'x', 1, -4)",
        "call('syscall', keyctl, 0, -4, 1)",
        "call('mlockall', 1)",
        "call('swapon', b'/tmp/sandbox', 0)",
    ],
    "locks": [
        "fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX)",
        "fcntl.lockf(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH)",
        "fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
        "call('inotify_init')",
        "call('fanotify_init', 0, 0)",
    ],
    "sockets": [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socketpair()",
        "socket.socket(fileno=pipe[0]).connect(chr(0) + 'sandbox')",
    ],
    "kernel interfaces": [
        "call('syscall', bpf, 0, None, 0)",
        "call('syscall', perf_event_open, None, 0, -1, -1, 0)",
        "call('syscall', userfaultfd, 0)",
        "call('syscall', io_uring_setup, 1, None)",
        "call('syscall', kcmp, victim, victim, 0, 0, 0)",
        "call('syscall', seccomp, 1, 0, None)",
        "call('syscall', open_by_handle_at, -100, None, 0)",
        "call('syscall', pidfd_getfd, 0, 0, 0)",
        "call('syscall', process_madvise, 0, None, 0, 0, 0)",
        "call('name_to_handle_at', -100, b'/', None, None, 0)",
        "call('init_module', None, 0, b'')",
        "call('klogctl', 3, None, 0)",
        "call('quotactl', 0, None, 0, None)",
        "call('acct', None)",
        "call('clock_settime', 0, ctypes.create_string_buffer(16))",
        "call('settimeofday', ctypes.create_string_buffer(16), None)",
        "call('adjtimex', ctypes.create_string_buffer(512))",
    ],
}
NUMBERS = {
    "x86_64": {
        "ioprio_set": 251, "add_key": 248, "keyctl": 250, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "kcmp": 312, "seccomp": 317, "open_by_handle_at": 304,
    },
    "aarch64": {
        "ioprio_set": 30, "add_key": 217, "keyctl": 219, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "kcmp": 272, "seccomp": 277, "open_by_handle_at": 265,
    },
}  # fmt: skip
EVERYWHERE = {"io_uring_setup": 425, "pidfd_getfd": 438, "process_madvise": 440}


@pytest.fixture
def victim():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def left_behind():
    """Return what programs can leave in the kernel and in shared folders."""
    tables = [pathlib.Path("/proc/sysvipc", name) for name in ("shm", "sem", "msg")]
    counts = {path.name: len(path.read_text().splitlines()) for path in tables if path.exists()}
    for folder in ("/dev/shm", "/dev/mqueue"):
        if os.path.isdir(folder):
            counts[folder] = sorted(name for name in os.listdir(folder) if "sandbox" in name)
    return counts


def state_of(process):
    pid = process.pid
    return (
        process.poll(),
        os.getpriority(os.PRIO_PROCESS, pid),
        os.sched_getaffinity(pid),
        os.sched_getscheduler(pid),
        [resource.prlimit(pid, n) for n in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE)],
    )


@pytest.mark.parametrize("kind", ESCAPES)
def test_escapes_are_refused(kind, victim):
    before, counts = state_of(victim), left_behind()
    numbers = {**NUMBERS[platform.machine()], **EVERYWHERE}
    program = HELPERS + f"victim = {victim.pid}\nglobals().update({numbers})\nescaped = []\n"
    for action in ESCAPES[kind]:
        program += f"try:\n    {action}\nexcept (OSError, ValueError): pass\n"
        program += f"else: escaped.append({action!r})\n"
    program += "if escaped: raise type(repr(escaped), (Exception,), {})"
    assert sandbox.run_program(program) == (True, "passed")
    assert state_of(victim) == before and left_behind() == counts


def test_all_other_system_calls_are_refused():
    spec = importlib.util.spec_from_file_location("sandbox_child", sandbox._CHILD)
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    column = child._MACHINES[platform.machine()][1]
    rows = [*child._CALLS.values(), child._FCNTL, child._IOCTL, child._PRLIMIT]
    permitted = {row[column] for row in rows}
    permitted |= {335, 336} if column == 0 else set()  # uprobes: Linux never filters these
    numbers = [n for n in [*range(600), *range(2**30, 2**30 + 600)] if n not in permitted]
    program = (
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in {numbers}:\n    ctypes.set_errno(0)\n"
        "    assert libc.syscall(ctypes.c_long(number), -1, -1, -1, -1, -1, -1) == -1, number\n"
        "    assert ctypes.get_errno() == errno.EPERM, number\n"
    )
    assert len(numbers) > 1000 and sandbox.run_program(program) == (True, "passed")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other system calls are of x86")
def test_32_bit_system_calls_end_the_program():
    program = (
        "import ctypes, mmap\npage = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20; int 0x80; ret
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()"
    )
    assert sandbox.run_program(program) == (False, "killed")


def test_program_is_not_root_and_reads_only_the_interpreter(tmp_path):
    (tmp_path / "secret").write_text("secret")
    program = "import os\nassert 0 not in (*os.getresuid(), *os.getresgid(), *os.getgroups())\n"
    if os.geteuid() != 0:
        program = "import os\n"
    for path in (tmp_path / "secret", "/etc/passwd", f"/proc/{os.getpid()}/status", "/proc/1/maps"):
        program += (
            f"try: open({str(path)!r})\nexcept PermissionError: pass\nelse: raise ValueError\n"
        )
    program += "os.listdir('.')\ntry: open('missing')\nexcept FileNotFoundError: pass"
    assert sandbox.run_program(program) == (True, "passed")


def test_program_ends_with_its_caller():
    """A killed caller leaves no program behind, although it sleeps without processor time."""
    program = "import time; time.sleep(300)"
    code = f"from keras_llm.recipes.common import sandbox\nsandbox.run_program({program!r})"
    caller = subprocess.Popen([sys.executable, "-c", code])
    tester = wait_for(lambda: children(caller.pid))
    child = wait_for(lambda: children(tester))
    statuses = [pathlib.Path(f"/proc/{process}/status") for process in (tester, child)]
    for status in statuses:
        wait_for(lambda: "Seccomp:\t2" in status.read_text())  # noqa: B023
    caller.kill()
    caller.wait()
    for status in statuses:
        wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())  # noqa: B023


def children(pid):
    """Return the id of the first child of a process, or None."""
    ids = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return ids[0] if ids else None


def wait_for(condition, seconds=20):
    """Return the value of `condition` when it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("the condition did not become true")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities")
def test_root_of_a_container(tmp_path):
    (tmp_path / "victim").write_text("keep")
    program = (
        "import json\n"
        f"for mode in 'rwa':\n    try: open({str(tmp_path / 'victim')!r}, mode)\n"
        "    except PermissionError: pass\n    else: raise ValueError\n"
    )
    source = (
        "import ctypes\nfrom keras_llm.recipes.common import sandbox\n"
        "ctypes.CDLL(None).prctl(24, 2, 0, 0, 0)\n"  # without CAP_DAC_READ_SEARCH from now on
        f"print(sandbox.run_program({program!r}))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout == "(True, 'passed')\n", done.stderr
    assert (tmp_path / "victim").read_text() == "keep"


def test_standard_library_works():
    program = (
        "import bz2, ctypes, datetime, decimal, hashlib, inspect, json, locale, lzma, selectors, "
        "signal, sqlite3, ssl, time, timeit, unittest, zoneinfo\n"
        "import os, select, sys, threading\n"
        "hashlib.sha256(b'x'); ssl.create_default_context(); inspect.getsource(json.dumps)\n"
        "sqlite3.connect(':memory:').execute('select 1'); zoneinfo.ZoneInfo('UTC')\n"
        "time.sleep(0.01); time.localtime(); timeit.timeit('1', number=1)\n"
        "os.getcwd(); os.urandom(1); os.cpu_count(); os.stat('.'); os.get_blocking(0)\n"
        "r, w = os.pipe(); os.set_blocking(r, False); os.write(w, b'x'); os.read(r, 1)\n"
        "select.select([r], [], [], 0); select.epoll().register(r); selectors.DefaultSelector()\n"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.alarm(1)\n"
        "threading.Lock().acquire(timeout=0.01); sys.setrecursionlimit(10**5)\n"
    )
    assert sandbox.run_program(program) == (True, "passed")


def test_nothing_runs_without_a_sandbox(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    text = sandbox._CHILD.read_text()
    assert "= 444, 446" in text
    child.write_text(text.replace("= 444, 446", "= 9999, 9999"))  # a kernel without Landlock
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(InputError, match="Landlock"):
        sandbox.run_program("pass")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(InputError, match="Linux"):
        sandbox.run_program("pass")


PROBLEM = {
    "prompt": 'def twice(x):\n    """Double it."""\n',
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    "entry_point": "twice",
}


def test_solution_must_pass_the_tests_of_the_problem():
    assert code_evaluation.solved(PROBLEM, "    return 2 * x\n")
    assert not code_evaluation.solved(PROBLEM, "    return x + 1\n")
    assert not code_evaluation.solved(PROBLEM, "    return (\n")
    assert not code_evaluation.solved(PROBLEM, "    while True: pass\n", seconds=1)
