"""What keeps a process from moving, looked for in real processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssi.node.migration import obstacles
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.obstacles import NAMESPACES, Usual, check_right, list_obstacles
from ssi.node.migration.stops import find_stop
from ssi.node.process import descriptors
from ssi.node.process.caller import Caller, read_caller
from support.clusters import wait_until

HEAD = "import ctypes, os, select, signal, socket, sys, mmap\n"
TAIL = "\nprint('ready', flush=True)\nsys.stdin.read()\n"


@pytest.fixture(autouse=True)
def _root_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (obstacles, descriptors):
        monkeypatch.setattr(module, "SYSROOT", Path("/"))


def usual() -> Usual:
    """What this process has."""
    status = Path("/proc/self/status").read_text()
    filters = re.search(r"^Seccomp_filters:\s*(\d+)", status, re.MULTILINE)
    namespaces = {name: {Path(f"/proc/self/ns/{name}").stat().st_ino} for name in NAMESPACES}
    return Usual(namespaces, int(filters[1]) if filters else 0)


@contextlib.contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has done what `code` says, and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + code + TAIL], cwd="/", text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        # Not in a group whose parents are all elsewhere: such a one is not stopped for a terminal.
        process_group=0,
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_locks(tmp_path: Path) -> None:
    code = f"import fcntl; file = open('{tmp_path}/file', 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"
    assert look(code) == []
    lease = code.replace("lockf(file, fcntl.LOCK_EX)", "fcntl(file, fcntl.F_SETLEASE, 1)")
    assert look(lease) == [f"it holds a lock of {tmp_path}/file, a lease"]


def look(code: str) -> list[str]:
    with running(code) as process:
        return list_obstacles(process.pid, usual())


def test_a_plain_process_can_move() -> None:
    assert look("") == []


def test_what_comes_along_is_no_obstacle() -> None:
    assert look(
        "kept = [socket.socketpair(), os.pipe(), select.epoll(), socket.socket(), "
        "os.memfd_create('m'), open('/dev/null'), open('/etc/passwd'), mmap.mmap(-1, 4096)]"
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("a = socket.socket(); a.bind(('127.0.0.1', 0)); a.listen()",
         r"descriptor 3 is a TCP socket that listens on port \d+"),
        ("a = socket.socket(); a.bind(('127.0.0.1', 0)); a.listen()\n"
         "b = socket.create_connection(a.getsockname()); c = a.accept()",
         r"descriptor \d is a TCP socket from port \d+ to port \d+"),
        ("a = socket.socket(type=socket.SOCK_DGRAM); a.bind(('127.0.0.1', 0))",
         r"descriptor 3 is a UDP socket on port \d+"),
        ("a = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
         "descriptor 3 is a netlink socket"),
        ("a = socket.socket(socket.AF_UNIX); a.bind('\\0ssi-test-' + str(os.getpid())); a.listen()",
         "descriptor 3 is a Unix socket that listens"),
        ("a = os.pidfd_open(os.getpid())", "descriptor 3 is a descriptor of pidfd"),
        ("a = os.open('/dev/ptmx', os.O_RDWR)", "descriptor 3 is the device /dev/ptmx"),
        ("a = open('/proc/self/stat')", r"descriptor 3 is this node's own: /proc/\d+/stat"),
        ("os.chdir('/proc/self')", r"its working directory is this node's own: /proc/\d+"),
        ("ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n"
         "class F(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('p', ctypes.c_void_p)]\n"
         "code = (ctypes.c_uint64 * 1)(0x7fff000000000006)\n"
         "assert not ctypes.CDLL(None).prctl(22, 2, ctypes.byref(F(1, ctypes.addressof(code))))",
         "it has a seccomp filter of its own"),
        ("assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0", r"process \d+ traces it"),
    ],
)  # fmt: skip
def test_an_obstacle_has_a_name(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the root of a node procfs's files are not.
    monkeypatch.setattr(
        descriptors, "SYSROOT", Path("/nowhere" if "/proc/self" in code else "/")
    )  # fmt: skip
    found = look(code)
    assert any(re.fullmatch(words, line) for line in found), found


def sleeps(pid: int) -> bool:
    """Tell whether a process waits for a signal."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith("34 ")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("a, b = socket.socketpair()\nif not os.fork(): a.close(); signal.pause()\nb.close()", []),
        ("a, b = socket.socketpair()\nif not os.fork(): signal.pause()\nb.close()",
         ["descriptor 3 is a Unix socket that process {child} has as well"]),
        ("a, b = socket.socketpair()\nif not os.fork(): b.close(); signal.pause()",
         ["descriptor 3 is a Unix socket that process {child} has as well"]),
        ("a, b = socket.socketpair(type=socket.SOCK_SEQPACKET)\n"
         "if not os.fork(): a.close(); signal.pause()\nb.close()", []),
        ("a, b = socket.socketpair(); socket.send_fds(b, [b'x'], [0])\n"
         "if not os.fork(): a.close(); signal.pause()\nb.close()",
         ["descriptor 3 is a Unix socket with descriptors that are not received yet"]),
        ("a, b = socket.socketpair(); a.setsockopt(1, socket.SO_PASSCRED, 1)\n"
         "if not os.fork(): a.close(); signal.pause()\nb.close()",
         ["descriptor 3 is a Unix socket that is told who sends (SO_PASSCRED)"]),
        ("c = socket.socket(socket.AF_UNIX)\n"
         "c.bind('\\0ssi-test-' + str(os.getpid())); c.listen()\n"
         "a = socket.socket(socket.AF_UNIX); a.connect(c.getsockname())\n"
         "d, _ = c.accept(); c.close()\n"
         "if not os.fork(): a.close(); signal.pause()\nd.close()",
         ["descriptor 4 is a Unix socket connected by the name @ssi-test-{parent}"]),
    ],
    ids=["a-pair", "shared", "both", "messages", "descriptors", "credentials", "a-name"],
)  # fmt: skip
def test_a_pair_with_another_process(
    code: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "origin_of", lambda _: 1)
    with running(code) as process:
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        wait_until(lambda: sleeps(child), "the child has done its part")
        found = list_obstacles(process.pid, usual())
        saved = list_obstacles(process.pid, usual(), to_leave=False)
        os.kill(child, signal.SIGKILL)
        assert found == [word.format(child=child, parent=process.pid) for word in words]
        if "if not os.fork(): a.close()" in code and "_UNIX" not in code:
            assert saved == ["descriptor 3 is a Unix socket to another process"]


def state_of(pid: int) -> str:
    """Return a process's state, as in /proc."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_who_stopped_a_process() -> None:
    with running("") as process:
        assert find_stop(process.pid) == 0
        for number in (signal.SIGTTIN, signal.SIGSTOP):
            os.kill(process.pid, number)
            os.waitpid(process.pid, os.WUNTRACED)
            found = list_obstacles(process.pid, usual())
            assert found == (
                ["it was stopped by SIGTTIN: it waits for its turn at the terminal"]
                if number == signal.SIGTTIN else []
            )  # fmt: skip
            # It is stopped as it was, as soon as it has a processor.
            wait_until(lambda: state_of(process.pid) == "T", "it is stopped")
            os.kill(process.pid, signal.SIGCONT)


def test_who_has_ended_has_none() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            list_obstacles(process.pid, usual())
    with pytest.raises(ProcessLookupError):
        list_obstacles(process.pid, usual())


def test_only_the_owner_may() -> None:
    me = read_caller(os.getpid())
    check_right(os.getpid(), me)
    stranger = Caller(1, (4711, 4711, 4711), (1, 1, 1), ())
    with pytest.raises(CannotMove, match="not yours"):
        check_right(os.getpid(), stranger)
