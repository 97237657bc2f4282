"""A process that moves keeps its locks: nobody else gets one meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, started, wait_until

KINDS = ("flock", "posix", "ofd")
FILE = "/root/locked"

TAKE = """\
import errno, fcntl, os, struct, sys, time

def take(file, kind, how, wait):
    if kind == "flock":
        operation = fcntl.LOCK_EX if how == "x" else fcntl.LOCK_SH
        fcntl.flock(file, operation | (0 if wait else fcntl.LOCK_NB))
        return
    command = {("posix", 0): 6, ("posix", 1): 7, ("ofd", 0): 37, ("ofd", 1): 38}[kind, wait]
    wanted = {"x": fcntl.F_WRLCK, "s": fcntl.F_RDLCK}[how]
    fcntl.fcntl(file, command, struct.pack("hhqqi4x", wanted, os.SEEK_SET, 5, 10, 0))

path, kinds = sys.argv[1], sys.argv[2].split(",")
"""

HOLD = (
    TAKE
    + """\
file = open(path, "a+")
for kind in kinds:
    take(file, kind, sys.argv[3], wait=1)
print(os.getpid(), flush=True)
time.sleep(1000)
"""
)

# Waits for one lock after the other.
WAIT = (
    TAKE
    + """\
file = open(path, "a+")
print("waits", flush=True)
for kind in kinds:
    take(file, kind, "x", wait=1)
print("has", flush=True)
"""
)

# Tries without a pause until the file FILE.over is there; says what it got, and tried how often.
TRY = (
    TAKE
    + """\
count, got = 0, []
while not os.path.exists(path + ".over"):
    for kind in kinds:
        with open(path, "a+") as file:
            count += 1
            try:
                take(file, kind, "x", wait=0)
            except OSError as error:
                assert error.errno in (errno.EAGAIN, errno.EACCES), error
            else:
                got.append(kind)
print(count, *sorted(set(got)))
"""
)


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


class Holder:
    """HOLD on node 1."""

    def __init__(self, cluster: Cluster, kinds: str, how: str = "x") -> None:
        self.cluster = cluster
        self.file = cluster.run(1, "mktemp", f"{FILE}.XXXXXX").strip()
        script = 'setsid python3 -c "$0" "$@" </dev/null >"$1.out" 2>&1 &'
        cluster.run(1, "sh", "-c", script, HOLD, self.file, kinds, how)
        wait_until(lambda: cluster.run(1, "cat", f"{self.file}.out").strip().isdigit(), "it has it")
        self.pid = cluster.run(1, "cat", f"{self.file}.out").strip()

    def move(self, node: int) -> None:
        """Move it, and have it there."""
        self.cluster.run(3, "migrate", str(node), self.pid)
        assert self.cluster.run(2, "where_pid", self.pid) == f"{node}\n"

    def try_there(self, node: int, kinds: str) -> list[str]:
        """Return which locks somebody else gets."""
        script = TRY.replace('while not os.path.exists(path + ".over")', "for time in range(3)")
        return self.cluster.run(node, "python3", "-c", script, self.file, kinds).split()[1:]

    def end(self) -> None:
        """Kill it."""
        self.cluster.run(3, "kill", "-9", self.pid)


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_its_lock(trio: Cluster, kind: str) -> None:
    holder = Holder(trio, kind)
    assert holder.try_there(3, kind) == []
    for node in (2, 3, 1, 2, 1):
        holder.move(node)
        for other in (1, 2, 3):
            assert holder.try_there(other, kind) == [], (node, other)
    holder.end()
    wait_until(lambda: holder.try_there(3, kind) == [kind], "it is free")


def test_shared_ones(trio: Cluster) -> None:
    one, kinds = Holder(trio, ",".join(KINDS[:2]), "s"), ",".join(KINDS[:2])
    one.move(2)
    script = TAKE + 'file = open(path, "a+")\nfor kind in kinds: take(file, kind, "s", wait=0)\n'
    trio.run(3, "python3", "-c", script, one.file, kinds)
    assert one.try_there(3, kinds) == []
    one.move(1)
    assert one.try_there(3, kinds) == []
    one.end()


def test_nobody_gets_it_meanwhile(trio: Cluster) -> None:
    kinds = ",".join(KINDS)
    # Between themselves the last two are in each other's way.
    holder = Holder(trio, "flock,posix")
    words = [TRY, holder.file, kinds]
    tries = [trio.start_python(node, *words) for node in (1, 2, 3)]
    for node in (2, 3, 1) * 3:
        holder.move(node)
    trio.run(1, "touch", f"{holder.file}.over")
    for process in tries:
        said, _ = process.communicate(timeout=60)
        count, *got = said.decode().split()
        assert int(count) > 20
        assert got == []
    holder.end()


@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_gets_it_first(trio: Cluster, kind: str) -> None:
    holder = Holder(trio, kind)
    waiting = trio.start_python(3, WAIT, holder.file, kind)
    assert waiting.stdout
    assert waiting.stdout.readline() == b"waits\n"

    def refuses() -> bool:
        refused = trio.try_run(1, "migrate", "2", holder.pid)
        if refused.status == 0:
            trio.run(1, "migrate", "1", holder.pid)
        return f"node3 waits for its lock of {holder.file}" in refused.err

    wait_until(refuses, "it waits")
    assert trio.run(1, "where_pid", holder.pid) == "1\n"
    assert holder.try_there(2, kind) == []
    holder.end()
    assert waiting.stdout.readline() == b"has\n"
    assert waiting.wait(60) == 0


def test_who_waits_may_move(trio: Cluster) -> None:
    holder = Holder(trio, "posix")
    script = 'setsid python3 -c "$0" "$@" </dev/null >"$1.waits" 2>&1 & echo $!'
    pid = trio.run(1, "sh", "-c", script, WAIT, holder.file, "posix").strip()
    wait_until(lambda: trio.run(1, "cat", f"{holder.file}.waits") == "waits\n", "it waits")
    trio.run(1, "migrate", "3", pid)
    assert trio.run(1, "where_pid", pid) == "3\n"
    holder.end()
    wait_until(lambda: trio.run(1, "cat", f"{holder.file}.waits") == "waits\nhas\n", "it has it")


def test_a_lock_that_two_have_together(trio: Cluster) -> None:
    code = f"""
import fcntl, os, time
file = open("{FILE}.both", "w")
fcntl.flock(file, fcntl.LOCK_EX)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(1000)
"""
    words = ("sh", "-c", 'setsid python3 -c "$0" >/root/both 2>&1 </dev/null & echo $!', code)
    pid = trio.run(1, *words).strip()
    wait_until(lambda: trio.run(1, "cat", "/root/both").strip(), "it has forked")
    child = trio.run(1, "cat", "/root/both").strip()
    said = trio.run(2, "cat", f"/proc/{pid}/cantmove")
    what = f"it holds a lock of {FILE}.both"
    assert said == f"{what}, which process {child} has open together with it\n"
    trio.run(2, "kill", "-9", pid, child)
