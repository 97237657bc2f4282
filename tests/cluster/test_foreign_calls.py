"""Calls that look at or change a process of any node, and descriptors of such processes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, kill_daemon, wait_until

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
import ctypes, errno, os, resource, signal, struct, sys
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
ATTR = struct.Struct("=IIQiIQQQII")
def set_attr(policy, nice=0, priority=0, flags=0, size=48, rest=b""):
    given = ATTR.pack(size, policy, flags, nice, priority, 0, 0, 0, 0, 0) + rest
    return raw(314, pid, given.ljust(8192, b"\\0"), 0)
def get_attr(size=48):
    taken = ctypes.create_string_buffer(b"x" * 8192, 8192)
    raw(315, pid, taken, size, 0)
    return ATTR.unpack_from(taken)[:5], taken.raw[48:56], taken.raw[56:].count(b"\\0")
def refused(given):
    buffer = ctypes.create_string_buffer(given.ljust(8192, b"\\0"), 8192)
    try:
        raw(314, pid, buffer, 0)
    except OSError as error:
        return errno.errorcode[error.errno], buffer.raw[:4]
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


# Policies by their structure, and the priority of input and output: class << 13 | level.
STRUCTURES = (
    "get_attr()", "get_attr(56)", "get_attr(1000)", "get_attr(4096)", "get_attr(4097)",
    "get_attr(47)", "get_attr(0)", "raw(315, pid, None, 48, 0)", "raw(315, pid, 4096, 48, 0)",
    "raw(315, pid, bytes(48), 48, 1)", "raw(314, pid, None, 0)", "raw(314, pid, 4096, 0)",
    "raw(314, pid, bytes(48), 1)",
    "set_attr(os.SCHED_BATCH, 3)", "get_attr()", "set_attr(os.SCHED_BATCH, 3, size=0)",
    "set_attr(os.SCHED_OTHER, 5, size=100)", "get_attr()", "set_attr(os.SCHED_OTHER, 4)",
    "set_attr(os.SCHED_OTHER, -100)", "set_attr(0, 100)", "get_attr()",
    "refused(struct.pack('=I', 47))", "refused(struct.pack('=I', 4097))",
    "refused(struct.pack('=I99x', 104) + b'1')", "set_attr(0, 19, size=100, rest=b'1')",
    "set_attr(77, 19)", "set_attr(2**31, 19)", "set_attr(os.SCHED_RESET_ON_FORK, 19)",
    "set_attr(0, 19, priority=1)", "set_attr(1, 19)", "set_attr(1, 19, priority=100)",
    "set_attr(0, 19, flags=2**20)",
    "set_attr(0, 0, flags=16)", "set_attr(77, 19, flags=8)", "get_attr()",
    "set_attr(os.SCHED_FIFO, 0, 7)", "get_attr()", "set_attr(0, 0, 5, flags=8)", "get_attr()",
    "set_attr(os.SCHED_RR, 0, 99, flags=16)", "get_attr()", "set_attr(0, 19)",
    "set_attr(0, 19, flags=1)", "get_attr()", "set_attr(0, 19)", "get_attr()",
    "set_attr(os.SCHED_IDLE)", "get_attr()", "set_attr(0, 19)", "get_attr()",
    "raw(252, 1, pid)", "raw(251, 1, pid, 2 << 13 | 6)", "raw(252, 1, pid)",
    "raw(251, 1, pid, 1 << 13 | 3)", "raw(252, 1, pid)", "raw(251, 1, pid, 3 << 13)",
    "raw(252, 1, pid)", "raw(251, 1, pid, 4 << 13)", "raw(251, 1, pid, 1)",
    "raw(251, 1, pid, -1)", "raw(251, 1, pid, 0)", "raw(252, 1, pid)", "raw(252, 9, pid)",
    "raw(251, 9, pid, 0)",
)  # fmt: skip


@pytest.mark.parametrize("words", [ATTRIBUTES, STRUCTURES], ids=["numbers", "structures"])
@pytest.mark.parametrize(
    "owners", [(ROOT,) * 3, (ALICE,) * 3, (ALICE, ROOT, ROOT), (ROOT, ALICE, ALICE)]
)
def test_attributes_are_the_kernels_from_anywhere(
    trio: Cluster, owners: tuple[int, int, int], words: tuple[str, ...]
) -> None:
    """The same calls on the process's own node, where the kernel judges, and from another."""
    for caller in (ROOT, ALICE, BOB):
        results = []
        for node in (2, 1):
            target = Target(trio, 2, *owners)
            results.append(calls(trio, node, caller, target.pid, *words))
            target.end()
        assert len(results[0]) == len(words)
        here, there = (dict(enumerate(zip(words, said, strict=True))) for said in results)
        assert there == here, f"{caller} on {owners}"


def test_nobody_has_attributes(trio: Cluster) -> None:
    words = ("os.sched_getaffinity(pid)", "os.sched_getscheduler(pid)", "raw(200, pid, 0)",
             "resource.prlimit(pid, CORE)", "os.pidfd_open(pid)", "get_attr()", "set_attr(0)",
             "raw(251, 1, pid, 0)", "raw(252, 1, pid)")  # fmt: skip
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


def test_chrt_and_ionice(trio: Cluster, alices: Target) -> None:
    pid = str(alices.pid)
    assert "policy: SCHED_OTHER" in trio.run(1, "chrt", "-p", pid)
    trio.run(1, "chrt", "-b", "-p", "0", pid)
    assert "policy: SCHED_BATCH" in trio.run(2, "chrt", "-p", pid)
    assert "policy: SCHED_BATCH" in trio.run(3, "chrt", "-p", pid)
    assert trio.run(1, "ionice", "-p", pid).startswith("none")
    trio.run(1, "ionice", "-c", "3", "-p", pid)
    assert [trio.run(node, "ionice", "-p", pid) for node in (2, 3)] == ["idle\n"] * 2
    as_bob = ("setpriv", "--reuid", str(BOB), "--clear-groups")
    for words in (("chrt", "-i", "-p", "0", pid), ("ionice", "-c", "2", "-p", pid)):
        refused = trio.try_run(1, *as_bob, *words)
        assert refused.status
        assert "Operation not permitted" in refused.err


# -- descriptors ---------------------------------------------------------------------------------

HOLDS = """\
import os, select, signal, sys, time
pid = int(sys.argv[1])
fd = os.pidfd_open(pid)
poll = select.poll()
poll.register(fd, select.POLLIN)
assert not os.get_inheritable(fd)
assert poll.poll(100) == []
try:
    os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
except OSError:
    print("no child", flush=True)
while word := sys.stdin.readline().strip():
    try:
        print(signal.pidfd_send_signal(fd, int(word)), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
print("ended" if poll.poll(60000) else "lives", flush=True)
try:
    # A zombie may be signalled until it has been waited for.
    while True:
        signal.pidfd_send_signal(fd, 0)
        time.sleep(0.1)
except ProcessLookupError:
    print("gone", flush=True)
"""


class Holder:
    """HOLDS, running on a node for a process of any node."""

    def __init__(self, cluster: Cluster, node: int, pid: int) -> None:
        words = ["ssi", "exec", "-c", str(cluster.number), str(node), "--"]
        self._process = cluster.ssi.person.start(
            [*words, "python3", "-c", HOLDS, str(pid)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert self.next_line() == "no child\n"

    def next_line(self) -> str:
        """Return the next line that it says."""
        assert self._process.stdout
        return self._process.stdout.readline().decode()

    def send(self, number: int) -> str:
        """Send a signal by its descriptor; return what came of it."""
        assert self._process.stdin
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        return self.next_line()

    def wait(self) -> None:
        """Have it wait for the end of the process, which comes."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.stdin = None
        assert (self.next_line(), self.next_line()) == ("ended\n", "gone\n")
        assert self._process.wait() == 0


def test_a_descriptor_of_a_process_elsewhere(trio: Cluster, alices: Target) -> None:
    one, two = Holder(trio, 1, alices.pid), Holder(trio, 1, alices.pid)
    assert one.send(0) == "None\n"
    assert one.send(signal.SIGUSR1) == "None\n"
    number, _, uid = alices.next_line().split()
    assert (number, uid) == (str(int(signal.SIGUSR1)), str(ROOT))
    assert two.send(99) == "OSError\n"
    alices.end()
    one.wait()
    two.wait()


def sends(number: int, info: str = "None", flags: int = 0) -> str:
    """Return the call that sends a signal by a descriptor of the process."""
    return f"raw(424, os.pidfd_open(pid), {number}, {info}, {flags})"


def test_who_may_send_by_a_descriptor_is_the_kernels_rule(trio: Cluster) -> None:
    forged = "(18).to_bytes(4, 'little') + bytes(124)"
    queued = "(10).to_bytes(4, 'little') + bytes(4) + b'\\xff' * 4 + bytes(116)"
    words = (
        sends(0), sends(10), sends(10, queued), sends(18, forged), sends(12, queued),
        sends(0, flags=64),
        "raw(434, pid, 1)", "raw(424, 0, 10, None, 0)", "raw(424, 99, 10, None, 0)",
    )  # fmt: skip
    for owners in ((ROOT,) * 3, (ALICE,) * 3, (ROOT, ALICE, ALICE)):
        target = Target(trio, 2, *owners)
        for sender in (ROOT, ALICE, BOB):
            here, there = (calls(trio, node, sender, target.pid, *words) for node in (2, 1))
            assert there == here, f"{sender} to {owners}"
        target.end()


def test_a_thread_has_no_descriptor(trio: Cluster, alices: Target) -> None:
    assert calls(trio, 1, ALICE, alices.thread, "os.pidfd_open(pid)") == ["EINVAL"]


# One without a terminal or the daemon's pipes, which sends a signal for each it gets.
DETACHED = """\
import os, select, signal, sys
fd = os.pidfd_open(int(sys.argv[1]))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
print("holds", flush=True)
for _ in range(2):
    signal.sigwait({signal.SIGUSR2})
    signal.pidfd_send_signal(fd, signal.SIGUSR1)
poll = select.poll()
poll.register(fd, select.POLLIN)
print("ended" if poll.poll(60000) else "lives", flush=True)
"""


def test_a_descriptor_outlives_daemons(trio: Cluster, alices: Target) -> None:
    script = 'setsid python3 -c "$0" "$1" >/root/holder 2>&1 </dev/null & echo $!'
    holder = trio.run(1, "sh", "-c", script, DETACHED, str(alices.pid)).strip()
    wait_until(lambda: trio.run(2, "cat", "/root/holder") == "holds\n", "it holds")
    kill_daemon(trio, 1)
    trio.run(2, "kill", "-USR2", holder)
    assert alices.next_line().split()[0] == str(int(signal.SIGUSR1))
    trio.run(2, "sh", "-c", f"kill -USR2 {holder}")
    assert alices.next_line().split()[0] == str(int(signal.SIGUSR1))
    kill_daemon(trio, 3)
    trio.run(1, "kill", "-9", str(alices.pid))
    wait_until(lambda: trio.run(1, "cat", "/root/holder") == "holds\nended\n", "it has ended")
    trio.run(2, "rm", "/root/holder")


def test_a_descriptor_of_a_process_that_runs_elsewhere_still(trio: Cluster) -> None:
    """Of its ghost's node, by which it is stopped as well."""
    script = "onnode 3 sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
    pid = int(trio.run(1, "sh", "-c", script))
    wait_until(lambda: trio.run(2, "where_pid", str(pid)) == "3\n", "it runs there")
    holders = [Holder(trio, node, pid) for node in (1, 2, 3)]
    for holder in holders:
        for number, state in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S")):
            assert holder.send(number) == "None\n"
            wait_until(lambda state=state: trio.run(3, "ps", "-o", "s=", str(pid)) == f"{state}\n",  # type: ignore[misc]
                       f"its state is {state}")  # fmt: skip
    assert holders[1].send(signal.SIGTERM) == "None\n"
    for holder in holders:
        holder.wait()


def test_a_descriptor_of_a_process_of_a_dead_node(trio: Cluster) -> None:
    target = Target(trio, 3, ALICE)
    holder = Holder(trio, 1, target.pid)
    trio.crash(3)
    holder.wait()
