"""Calls that look at or change a process of any node, and descriptors of such processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from support.clusters import Cluster

# Somebody: says its PID and that of its other thread, then which signals come, with their values.
TARGET = """\
import os, signal, sys, threading
signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
ids = [int(word) for word in sys.argv[1:]]
os.setresgid(ids[0], ids[0], ids[0])
os.setgroups([])
os.setresuid(*ids)
def wait_first():
    print(os.getpid(), threading.get_native_id(), flush=True)
    print("thread", signal.sigwaitinfo({signal.SIGUSR2}).si_signo, flush=True)
threading.Thread(target=wait_first, daemon=True).start()
while True:
    info = signal.sigwaitinfo(signals - {signal.SIGUSR2})
    print(info.si_signo, info.si_pid, info.si_uid, flush=True)
"""

# Makes calls as somebody; prints what each gives, or the name of its error.
CALLS = """\
import ctypes, errno, os, resource, signal, sys
uid, pid = map(int, sys.argv[1:])
os.setresgid(uid, uid, uid)
os.setgroups([])
os.setresuid(uid, uid, uid)
FILES, CORE = resource.RLIMIT_NOFILE, resource.RLIMIT_CORE
param = os.sched_param
libc = ctypes.CDLL(None, use_errno=True)
def raw(number, *arguments):
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *longs)
    if result < 0:
        raise OSError(ctypes.get_errno(), "raw")
    return result
def attempt(call):
    try:
        print(call())
    except OSError as error:
        print(errno.errorcode[error.errno])
    except ValueError as error:
        print(error)
"""

ROOT, ALICE, BOB = 0, 1001, 1002


class Target:
    """TARGET, running on some node."""

    def __init__(self, cluster: Cluster, node: int, *uids: int) -> None:
        self.cluster = cluster
        self.node = node
        ids = uids if len(uids) == 3 else uids * 3
        self._process = cluster.start_python(node, TARGET, *map(str, ids))
        self.pid, self.thread = map(int, self.next_line().split())

    def next_line(self) -> str:
        """Return the next line that it says."""
        assert self._process.stdout
        return self._process.stdout.readline().decode()

    def end(self) -> None:
        """End it."""
        self.cluster.try_run(self.node, "kill", "-9", str(self.pid))
        self._process.wait()


@pytest.fixture
def alices(trio: Cluster) -> Iterator[Target]:
    """A process of Alice's on node 3."""
    target = Target(trio, 3, ALICE)
    yield target
    target.end()


def calls(cluster: Cluster, node: int, uid: int, pid: int, *words: str) -> list[str]:
    """Make the calls `words` on `node` as user `uid`; return what each gave."""
    script = CALLS + "".join(f"attempt(lambda: {word})\n" for word in words)
    return cluster.python(node, script, str(uid), str(pid)).splitlines()


# One by one, each on what those before have left.
ATTRIBUTES = (
    "os.sched_getaffinity(pid)", "os.sched_setaffinity(pid, {0})", "os.sched_getaffinity(pid)",
    "os.sched_setaffinity(pid, {63})", "raw(203, pid, 8, None)", "raw(204, pid, 8, None)",
    "raw(204, pid, 3, None)", "raw(203, pid, 8, 2**62 + 1)", "raw(204, pid, 8, 4096)",
    "os.sched_getscheduler(pid)", "os.sched_getparam(pid).sched_priority",
    "os.sched_setscheduler(pid, os.SCHED_BATCH, param(0))", "os.sched_getscheduler(pid)",
    "os.sched_setscheduler(pid, os.SCHED_BATCH, param(1))", "raw(144, pid, 77, b'0000')",
    "raw(144, pid, 0, None)", "raw(142, pid, None)", "raw(143, pid, None)",
    "os.sched_setscheduler(pid, os.SCHED_FIFO, param(5))", "os.sched_getscheduler(pid)",
    "os.sched_getparam(pid).sched_priority", "os.sched_setparam(pid, param(6))",
    "os.sched_getparam(pid).sched_priority",
    "os.sched_setscheduler(pid, os.SCHED_OTHER, param(0))",
    "os.sched_setparam(pid, param(0))",
    "resource.prlimit(pid, CORE)", "resource.prlimit(pid, CORE, (100, 200))",
    "resource.prlimit(pid, CORE)", "resource.prlimit(pid, CORE, (100, 300))",
    "resource.prlimit(pid, CORE, (50, 150))", "resource.prlimit(pid, CORE, (10, -1))",
    "resource.prlimit(pid, FILES)[0] > 0", "raw(302, pid, 99, None, None)",
    "raw(302, pid, CORE, None, None)", "raw(302, pid, CORE, 4096, None)",
    "os.sched_setscheduler(pid, os.SCHED_IDLE, param(0))",
    "os.sched_setscheduler(pid, os.SCHED_OTHER, param(0))", "os.sched_getscheduler(pid)",
)  # fmt: skip


@pytest.mark.parametrize(
    "owners", [(ROOT,) * 3, (ALICE,) * 3, (ALICE, ROOT, ROOT), (ROOT, ALICE, ALICE)]
)
def test_attributes_are_the_kernels_from_anywhere(
    trio: Cluster, owners: tuple[int, int, int]
) -> None:
    """The same calls on the process's own node, where the kernel judges, and from another."""
    for caller in (ROOT, ALICE, BOB):
        results = []
        for node in (2, 1):
            target = Target(trio, 2, *owners)
            results.append(calls(trio, node, caller, target.pid, *ATTRIBUTES))
            target.end()
        assert len(results[0]) == len(ATTRIBUTES)
        here, there = (dict(enumerate(zip(ATTRIBUTES, said, strict=True))) for said in results)
        assert there == here, f"{caller} on {owners}"


def test_nobody_has_attributes(trio: Cluster) -> None:
    words = ("os.sched_getaffinity(pid)", "os.sched_getscheduler(pid)", "raw(200, pid, 0)",
             "resource.prlimit(pid, CORE)")  # fmt: skip
    for pid in ((3 << 15) + 32000, (99 << 15) + 5):
        assert calls(trio, 1, ROOT, pid, *words) == ["ESRCH"] * len(words)


def test_a_thread_elsewhere(trio: Cluster, alices: Target) -> None:
    words = ("raw(200, pid, 0)", "raw(200, pid, 99)", "os.sched_getaffinity(pid) == {0}",
             "os.sched_setscheduler(pid, 3, param(0))", "os.sched_getscheduler(pid)",
             "raw(200, pid, signal.SIGUSR2)")  # fmt: skip
    assert calls(trio, 1, BOB, alices.thread, words[0], words[3]) == ["EPERM", "EPERM"]
    said = calls(trio, 1, ALICE, alices.thread, *words)
    assert said == ["0", "EINVAL", "True", "None", "3", "0"]
    assert alices.next_line() == f"thread {int(signal.SIGUSR2)}\n"
    assert calls(trio, 2, ALICE, alices.pid, "os.sched_getscheduler(pid)") == ["0"]


def test_taskset_and_prlimit(trio: Cluster, alices: Target) -> None:
    assert "affinity list: 0" in trio.run(1, "taskset", "-cp", str(alices.pid))
    trio.run(1, "prlimit", "--pid", str(alices.pid), "--nofile=55:66")
    said = trio.run(2, "prlimit", "--pid", str(alices.pid), "--nofile", "--noheadings", "--raw")
    assert said.split()[-3:-1] == ["55", "66"]
