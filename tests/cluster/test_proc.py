"""/proc of any node shows the processes of all."""

from __future__ import annotations

import collections
import shlex
import subprocess
import time
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, kill_daemon, wait_until

ALICE, BOB = 1001, 1002

# Somebody to look at: Alice's, with a file of the root open, a thread, and a secret.
TARGET = f"""\
import os, sys, threading
os.setgroups([])
os.setresgid({ALICE}, {ALICE}, {ALICE})
os.setresuid({ALICE}, {ALICE}, {ALICE})
os.execve("/usr/bin/python3", ["python3", "-c", '''
import os, threading
held = open("/etc/passwd")
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), flush=True)
threading.Event().wait()
''', "a word"], {{"SECRET": "of Alice"}})
"""

PSUTIL = """\
import json, psutil, sys
process = psutil.Process(int(sys.argv[1]))
with process.oneshot():
    print(json.dumps([
        process.ppid(), process.cmdline(), process.uids().effective, process.num_threads(),
        process.environ(), [each.path for each in process.open_files()], process.exe(),
    ]))
pids = [each.pid for each in psutil.process_iter()]
assert len(pids) == len(set(pids))
assert process.pid in pids
"""

LOOP = """\
import subprocess, sys, time
bad = 0
end = time.monotonic() + float(sys.argv[1])
print("ready", flush=True)
while time.monotonic() < end:
    shown = subprocess.run(["ps", "-e", "-o", "pid="], stdout=subprocess.PIPE)
    bad += shown.returncode != 0 or len(shown.stdout.split()) < 20
print(bad)
"""


class Target:
    """TARGET, running on a node."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        self.cluster = cluster
        self._process = cluster.start_python(node, TARGET)
        assert self._process.stdout
        line = self._process.stdout.readline().split()
        self.pid, self.parent, self.group, self.session = map(int, line)

    def end(self) -> None:
        """End it."""
        self.cluster.try_run(1, "kill", "-9", str(self.pid))
        self._process.wait()


@pytest.fixture
def alices(trio: Cluster) -> Iterator[Target]:
    """A process of Alice's on node 3."""
    target = Target(trio, 3)
    yield target
    target.end()


def as_user(uid: int, *argv: str) -> list[str]:
    """Return the command that runs `argv` as `uid`."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *argv]


def test_every_process_once_and_as_its_own_node_shows_it(trio: Cluster, alices: Target) -> None:
    columns = ["ps", "-o", "pid=,ppid=,pgid=,sid=,tty=,euid=,nlwp=,args=", "-p", str(alices.pid)]
    shown = {node: trio.run(node, *columns) for node in (1, 2, 3)}
    assert shown[1] == shown[2] == shown[3]
    assert shown[1].split()[:4] == [
        str(number) for number in (alices.pid, alices.parent, alices.group, alices.session)
    ]
    for words in (["ps", "-ef"], ["ps", "axj"], ["ps", "axjf"], ["top", "-b", "-n1", "-w200"]):
        lines = [line.split() for line in trio.run(1, *words).splitlines()]
        column = next(line for line in lines if "PID" in line).index("PID")
        pids = [line[column] for line in lines if len(line) > column and line[column].isdigit()]
        counted = collections.Counter(pids)
        assert counted[str(alices.pid)] == 1, words
        assert max(counted.values()) == 1, words


def test_a_process_that_is_not_at_home_is_shown_where_it_runs(trio: Cluster) -> None:
    """By each node once: neither its ghost nor the stand-ins of its parents are processes."""
    script = "import os, threading; print(os.getpid(), os.getppid(), flush=True); "
    words = ["onnode", "2", "python3", "-c", f"{script}threading.Event().wait()", "away"]
    process = trio.ssi.person.start(
        ["ssi", "exec", "-c", str(trio.number), "1", "--", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    pid, parent = map(int, process.stdout.readline().split())
    assert pid >> 15 == 1
    for node in (1, 2, 3):
        listed = trio.run(node, "ps", "-e", "-o", "pid=").split()
        assert max(collections.Counter(listed).values()) == 1
        assert str(pid) in listed
        assert trio.run(node, "ps", "-o", "ppid=", "-p", str(pid)).split() == [str(parent)]
        assert trio.run(node, "ps", "-o", "args=", "-p", str(pid)).split()[-1] == "away"
        assert trio.run(node, "cat", f"/proc/{pid}/where") == "2\n"
    trio.run(3, "kill", str(pid))
    process.wait()


def test_start_times_before_the_readers_boot(trio: Cluster, alices: Target) -> None:
    time.sleep(3)
    trio.crash(2)
    trio.add(2)
    trio.restore(1, 2, 3)

    def seconds_of(node: int, *words: str) -> int:
        return int(trio.run(node, "date", "+%s", "-d", trio.run(node, *words).strip()))

    began = "ps", "-o", "lstart=", "-p", str(alices.pid)

    def agree() -> bool:
        booted = int(trio.run(2, "awk", "/^btime/ { print $2 }", "/proc/stat"))
        true = seconds_of(3, *began)
        assert booted - true > 1
        found = int(trio.run(2, "stat", "-c", "%Y", f"/proc/{alices.pid}"))
        return abs(found - true) <= 1 and abs(seconds_of(2, *began) - booted) <= 1

    # The clock of a node that has just been booted may be set once more.
    wait_until(agree, "the same start everywhere")


def test_start_times_are_true(trio: Cluster, alices: Target) -> None:
    words = ["ps", "-o", "lstart=", "-p", str(alices.pid)]
    seconds = [
        int(trio.run(node, "sh", "-c", f'date +%s -d "$({" ".join(words)})"')) for node in (1, 3)
    ]
    assert abs(seconds[0] - seconds[1]) <= 1


def test_tools_find_it(trio: Cluster, alices: Target) -> None:
    pid = str(alices.pid)
    assert pid in trio.run(1, "pgrep", "-f", "a word").split()
    assert "/etc/passwd" in trio.run(1, "lsof", "-p", pid)
    assert pid in trio.run(1, "fuser", "/etc/passwd").split()
    assert pid in trio.run(1, "pstree", "-p", pid)
    screen = trio.run(1, "sh", "-c", "echo q | TERM=linux COLUMNS=200 LINES=500 htop -C")
    assert pid in screen
    found = trio.python(1, PSUTIL, pid)
    assert found == trio.python(3, PSUTIL, pid)
    assert "a word" in found
    assert '{"SECRET": "of Alice"}' in found
    trio.run(1, "pkill", "-0", "-f", "a word")


def test_where(trio: Cluster, alices: Target) -> None:
    assert trio.run(1, "cat", f"/proc/{alices.pid}/where") == "3\n"
    assert trio.run(1, "cat", "/proc/self/where", "/proc/1/where") == "1\n1\n"


def test_local_is_the_kernels_own(trio: Cluster) -> None:
    """Magic links, folders that are folders, numbers in self."""
    script = """
    set -e
    test "$(readlink /proc/self)" -gt 32768
    exec 3>/root/held; rm /root/held; echo kept >/proc/self/fd/3; cat /proc/$$/fd/3
    ls -ld /proc/$$ /proc/$$/fd | cut -c1
    find /proc -maxdepth 1 -name $$ -type d
    cat <(echo substituted)
    sysctl -n kernel.ostype
    sleep 100 & kill -9 $!; wait $! || true; test ! -d /proc/$!; test ! -e /proc/$!/stat
    df >/dev/null; mount >/dev/null; echo $$
    """
    *lines, pid = trio.run(2, "bash", "-c", script).splitlines()
    assert lines == ["kept", "d", "d", f"/proc/{pid}", "substituted", "Linux"]


def test_who_may_look_is_the_kernels_rule(trio: Cluster, alices: Target) -> None:
    looks = [
        *(["cat", f"/proc/{alices.pid}/{name}"] for name in (
            "stat", "status", "cmdline", "environ", "maps", "io", "limits", "cgroup",
        )),
        *(["readlink", f"/proc/{alices.pid}/{name}"] for name in ("exe", "cwd", "root", "fd/1")),
        *(["ls", f"/proc/{alices.pid}/{name}"] for name in ("fd", "task", "ns")),
    ]  # fmt: skip
    script = "\n".join(
        f"{shlex.join(look)} >/dev/null 2>&1 && echo may || echo not" for look in looks
    )
    said = {}
    for uid in (0, ALICE, BOB):
        words = as_user(uid, "sh", "-c", script)
        here, there = (
            dict(zip(map(shlex.join, looks), trio.run(node, *words).split(), strict=True))
            for node in (3, 1)
        )
        assert there == here, uid
        said[uid] = here
    assert said[0][f"cat /proc/{alices.pid}/environ"] == "may"
    assert said[BOB][f"cat /proc/{alices.pid}/stat"] == "may"
    assert said[BOB][f"cat /proc/{alices.pid}/environ"] == "not"


def test_the_whole_cluster_and_the_opt_out(trio: Cluster, alices: Target) -> None:
    def count(node: int, name: str, pattern: str, *setting: str) -> int:
        words = ["env", *setting, "grep", "-c", pattern, f"/proc/{name}"]
        return int(trio.run(node, *words))

    local = "SSI_PROC=local"
    assert count(1, "stat", "^cpu[0-9]") == 3
    assert count(1, "stat", "^cpu[0-9]", local) == 1
    amounts = [
        int(
            trio.run(1, "env", *setting, "sed", "-n", "s/MemTotal: *//p", "/proc/meminfo").split()[
                0
            ]
        )
        for setting in ([], [local])
    ]
    assert 2.5 < amounts[0] / amounts[1] < 3.5
    assert "Cpu2" in trio.run(1, "top", "-b", "-n1", "-1", "-w200")
    pids = trio.run(1, "env", local, "ps", "-e", "-o", "pid=").split()
    assert str(alices.pid) not in pids
    assert all(int(pid) >> 15 in {0, 1} for pid in pids)


def test_many_read_at_once(trio: Cluster) -> None:
    """Nobody finds a file cut short because somebody else has just looked for it."""
    files = "/proc/stat /proc/meminfo /proc/loadavg"
    lines = int(trio.run(2, "sh", "-c", f"cat {files} | wc -l"))
    assert lines > 20
    script = f"""
        for reader in 1 2 3 4 5 6 7 8; do
            for time in 1 2 3 4 5 6; do cat {files}; done | wc -l &
        done
        wait
    """
    assert trio.run(2, "sh", "-c", script).split() == [str(6 * lines)] * 8


def test_processes_end_with_their_node(trio: Cluster, alices: Target) -> None:
    try:
        assert str(alices.pid) in trio.run(1, "ps", "-e", "-o", "pid=").split()
        trio.crash(3)
        wait_until(
            lambda: str(alices.pid) not in trio.run(1, "ps", "-e", "-o", "pid=").split(),
            "the dead node's processes are not listed",
        )
        wait_until(
            lambda: trio.try_run(1, "test", "-e", f"/proc/{alices.pid}").status == 1,
            "nor to be found",
        )
    finally:
        trio.restore(1, 2, 3)


def test_a_killed_daemon_is_waited_for(trio: Cluster) -> None:
    # What runs under the daemon's eyes is lost with it; this is on its own.
    script = f"nohup python3 -c '{LOOP}' 8 >/root/loop.log 2>&1 & echo $!"
    pid = trio.run(1, "sh", "-c", script).strip()
    kill_daemon(trio, 1)
    kill_daemon(trio, 2)
    wait_until(lambda: trio.try_run(1, "test", "-d", f"/proc/{pid}").status == 1, "it ends")
    assert trio.run(1, "cat", "/root/loop.log").split() == ["ready", "0"]
