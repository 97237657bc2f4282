"""Signals from any node to any process, as on one machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, answers, kill_daemon, stop_daemon, wait_until

# Somebody to send to: says which signals come, from whom, with which value.
TARGET = """\
import os, signal, sys
os.setresgid(int(sys.argv[1]), int(sys.argv[1]), int(sys.argv[1]))
os.setgroups([])
os.setresuid(*map(int, sys.argv[1:4]))
signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN, signal.SIGCONT}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print(os.getpid(), flush=True)
while True:
    info = signal.sigwaitinfo(signals)
    print(info.si_signo, info.si_pid, info.si_uid, flush=True)
"""

# Makes one call as somebody; prints its result or the name of its error.
CALL = """\
import ctypes, errno, os, signal, sys
uid, what, *numbers = sys.argv[1:]
os.setresgid(int(uid), int(uid), int(uid))
os.setgroups([])
os.setresuid(int(uid), int(uid), int(uid))
calls = {
    "kill": os.kill, "killpg": os.killpg, "getpgid": os.getpgid, "getsid": os.getsid,
    "getpriority": lambda pid: os.getpriority(os.PRIO_PROCESS, pid),
    "setpriority": lambda pid, nice: os.setpriority(os.PRIO_PROCESS, pid, nice),
    "sigqueue": lambda pid, number, value: ctypes.CDLL(None, use_errno=True).sigqueue(
        pid, number, ctypes.c_void_p(value)),
    "tgkill": lambda pid, number: ctypes.CDLL(None).syscall(234, pid, pid, number),
}
try:
    print(calls[what](*map(int, numbers)))
except OSError as error:
    print(errno.errorcode[error.errno])
print(os.getpid())
"""

ROOT, ALICE, BOB = 0, 1001, 1002


class Target:
    """TARGET, running on some node."""

    def __init__(self, cluster: Cluster, node: int, *uids: int) -> None:
        self.cluster = cluster
        self.node = node
        ids = uids if len(uids) == 3 else uids * 3
        self._process = cluster.start_python(node, TARGET, *map(str, ids))
        self.pid = int(self.next_line())

    def next_line(self) -> str:
        """Return the next line that it says."""
        assert self._process.stdout
        return self._process.stdout.readline().decode()

    def end(self) -> None:
        """End it."""
        self.cluster.try_run(self.node, "kill", "-9", str(self.pid))
        self._process.wait()


def call(cluster: Cluster, node: int, uid: int, what: str, *numbers: int) -> tuple[str, int]:
    """Make a system call on `node`; return what it gave, and who made it."""
    words = [str(uid), what, *map(str, numbers)]
    result, pid = cluster.python(node, CALL, *words).split()
    return result, int(pid)


@pytest.fixture
def alices(trio: Cluster) -> Iterator[Target]:
    """A process of Alice's on node 3."""
    target = Target(trio, 3, ALICE)
    yield target
    target.end()


def test_a_signal_tells_who_sent_it(trio: Cluster, alices: Target) -> None:
    for node in (1, 3):
        _, sender = call(trio, node, ALICE, "kill", alices.pid, signal.SIGUSR1)
        assert alices.next_line() == f"{signal.SIGUSR1} {sender} {ALICE}\n"
        _, sender = call(trio, node, ROOT, "tgkill", alices.pid, signal.SIGUSR2)
        assert alices.next_line() == f"{signal.SIGUSR2} {sender} {ROOT}\n"
        _, sender = call(trio, node, ALICE, "sigqueue", alices.pid, signal.SIGRTMIN, 77)
        assert alices.next_line() == f"{int(signal.SIGRTMIN)} {sender} {ALICE}\n"


def test_who_may_send_is_the_kernels_rule(trio: Cluster) -> None:
    """The same matrix on the process's own node, where the kernel judges, and from another."""
    for owners in ((ROOT,) * 3, (ALICE,) * 3, (ALICE, ROOT, ROOT), (ROOT, ALICE, ALICE)):
        target = Target(trio, 2, *owners)
        for sender in (ROOT, ALICE, BOB):
            for number in (0, signal.SIGUSR1):
                here, _ = call(trio, 2, sender, "kill", target.pid, number)
                there, _ = call(trio, 1, sender, "kill", target.pid, number)
                assert there == here, f"{sender} to {owners}, signal {number}"
                assert here in {"None", "EPERM"}
        target.end()


def test_questions_about_a_process_elsewhere(trio: Cluster, alices: Target) -> None:
    for what in ("getpgid", "getsid", "getpriority"):
        here, _ = call(trio, 3, ALICE, what, alices.pid)
        there, _ = call(trio, 1, ALICE, what, alices.pid)
        assert there == here, what
    assert call(trio, 1, BOB, "setpriority", alices.pid, 5)[0] == "EPERM"
    assert call(trio, 1, ALICE, "setpriority", alices.pid, 5)[0] == "None"
    assert call(trio, 3, ALICE, "getpriority", alices.pid)[0] == "5"
    assert call(trio, 1, ALICE, "setpriority", alices.pid, 0)[0] == "EACCES"


def test_where_a_process_is(trio: Cluster, alices: Target) -> None:
    for node in (1, 3):
        assert trio.run(node, "where_pid", str(alices.pid)) == "3\n"
    gone = trio.try_run(1, "where_pid", str((3 << 15) + 32000))
    assert (gone.status, gone.out) == (1, "")
    assert "there is no process" in gone.err
    assert trio.try_run(1, "where_pid", "init").status == 2


def test_nobody_is_there(trio: Cluster) -> None:
    gone = (3 << 15) + 32000
    never = (99 << 15) + 5
    for pid in (gone, never):
        for what in (("kill", pid, 0), ("getpgid", pid), ("killpg", pid, signal.SIGTERM)):
            assert call(trio, 1, ROOT, what[0], *what[1:])[0] == "ESRCH"
    assert call(trio, 1, ROOT, "kill", (3 << 15) + 1, 99)[0] == "EINVAL"


def test_a_group_elsewhere(trio: Cluster) -> None:
    script = "setsid sh -c 'echo $$; sleep 1000 & sleep 1000' </dev/null 2>&1 &"
    group = int(trio.run(2, "sh", "-c", f"{script} sleep 0.5"))
    assert len(trio.run(2, "pgrep", "-g", str(group)).split()) == 3
    trio.run(1, "bash", "-c", f"kill -TERM -- -{group}")
    wait_until(lambda: not trio.try_run(2, "pgrep", "-r", "S,R,T", "-g", str(group)).out,
               "the group has ended")  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_commands_of_everyday(trio: Cluster, shell: str) -> None:
    for command in ("kill", "/bin/kill"):
        script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"
        pid = trio.run(3, "sh", "-c", script).strip()
        trio.run(1, shell, "-c", f"{command} -STOP {pid} && {command} -CONT {pid}")
        trio.run(2, shell, "-c", f"{command} {pid}")
        wait_until(lambda pid=pid: trio.try_run(1, "kill", "-0", pid).status,  # type: ignore[misc]
                   "it has ended")  # fmt: skip
        failed = trio.try_run(1, shell, "-c", f"{command} {pid}")
        assert "No such process" in failed.err


def test_everybody_is_reached_and_no_node_dies_of_it(trio: Cluster) -> None:
    targets = [Target(trio, node, ALICE) for node in (1, 2, 3)]
    other = Target(trio, 2, BOB)
    _, sender = call(trio, 1, ALICE, "kill", -1, signal.SIGUSR1)
    for target in targets:
        assert target.next_line() == f"{signal.SIGUSR1} {sender} {ALICE}\n"
    _, sender = call(trio, 1, ROOT, "kill", -1, signal.SIGCONT)
    for target in (*targets, other):
        assert target.next_line() == f"{signal.SIGCONT} {sender} {ROOT}\n"
        target.end()
    assert trio.run(3, "cluster") == "1-3\n"


def test_a_call_waits_for_the_next_daemon(trio: Cluster, alices: Target) -> None:
    kill_daemon(trio, 1)
    _, sender = call(trio, 1, ALICE, "kill", alices.pid, signal.SIGUSR1)
    assert alices.next_line() == f"{signal.SIGUSR1} {sender} {ALICE}\n"
    kill_daemon(trio, 3)
    assert call(trio, 1, ALICE, "kill", alices.pid, 0)[0] == "None"
    assert call(trio, 1, BOB, "kill", alices.pid, 0)[0] == "EPERM"


def is_call_held(cluster: Cluster, node: int) -> bool:
    """Tell whether the daemon of `node` has a system call to answer."""
    script = "tr -d '\\0' </run/ssi/calls | wc -c"
    words = ["exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", script]
    return int(cluster.ssi(*words)) > 0


def test_a_call_under_way_is_answered_by_the_next_daemon(trio: Cluster, alices: Target) -> None:
    """Node 3's daemon is stopped, so the call is under way when node 1's is killed."""
    stopped = stop_daemon(trio, 3, 20)
    wait_until(lambda: not answers(trio, 3), "node3's daemon is stopped")
    script = "kill -USR1 $0; echo $? >/root/result"
    start = 'rm -f /root/result; setsid sh -c "$0" "$1" >/dev/null 2>&1 </dev/null &'
    trio.run(1, "sh", "-c", start, script, str(alices.pid))
    wait_until(lambda: is_call_held(trio, 1), "the call is held")
    kill_daemon(trio, 1)
    trio.run(1, "clusternode_num")
    assert trio.try_run(1, "test", "-e", "/root/result").status == 1
    assert stopped.wait() == 0
    wait_until(lambda: trio.try_run(1, "cat", "/root/result").out == "0\n", "it is answered")
    assert alices.next_line().split()[0] == str(int(signal.SIGUSR1))
    wait_until(lambda: not is_call_held(trio, 1), "nothing is left")
    trio.run(1, "rm", "/root/result")


def test_a_process_of_a_dead_node_is_gone(trio: Cluster) -> None:
    target = Target(trio, 3, ALICE)
    trio.crash(3)
    wait_until(lambda: call(trio, 1, ALICE, "kill", target.pid, 0)[0] == "ESRCH", "it is gone")
