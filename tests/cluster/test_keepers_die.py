"""The keepers of a node are killed: who uses what they had hears of it, and the next use works."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from support import ipc, queues
from support.clusters import Cluster, Ssi, started, wait_until
from support.fifos import Doing, Refused, acting

FIND_KEEPER = """\
for process in /proc/[0-9]*; do
    read -r name <$process/comm && [ "$name" = "$0" ] || continue
    parent=$(sed -n 's/^PPid:[^0-9]*//p' $process/status)
    read -r of </proc/$parent/comm
    [ "$of" = "$0" ] || echo ${process#/proc/}
done 2>/dev/null
"""
"""Not what it has forked."""


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


def find_keeper(cluster: Cluster, node: int, name: str) -> str:
    """Return the PID of the keeper of this name, "" if there is none."""
    return cluster.ssi(
        "exec", "-c", str(cluster.number), "--ramdisk", str(node), "--",
        "sh", "-c", FIND_KEEPER, name,
    ).strip()  # fmt: skip


def kill_keeper(cluster: Cluster, node: int, name: str) -> None:
    """Kill it, and wait for the next one."""
    killed = find_keeper(cluster, node, name)
    assert killed
    cluster.ssi(
        "exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "kill", "-9", killed
    )
    wait_until(lambda: find_keeper(cluster, node, name) not in {"", killed}, f"another {name}")


def outcome(doing: Doing) -> object:
    """Return the result, or the name of the error."""
    try:
        return doing.result()
    except Refused as error:
        return str(error)


def test_a_fifo(own: Cluster) -> None:
    path = "/root/dying"
    own.run(1, "mkfifo", path)
    with acting(own, 1, 2) as [reader, home]:
        writing = home.do("open", path, os.O_RDWR)
        reading = reader.do("open", path, os.O_RDONLY)
        waiting = reader.begin("read", reading, 10)
        waiting.wait_blocked()
        kill_keeper(own, 2, "fifokeeper")
        assert outcome(waiting) == "EIO"
        reading = reader.do("open", path, os.O_RDONLY)
        home.do("write", writing, "word")
        assert reader.do("read", reading, 10) == "word"


def test_a_device(own: Cluster) -> None:
    with acting(own, 1, 2) as [actor, home]:
        master, _, name = home.do("openpty")
        path = f"/devfs/node2/pts/{name.rpartition('/')[2]}"
        terminal = actor.do("open", path, os.O_RDWR | os.O_NOCTTY)
        waiting = actor.begin("read", terminal, 10)
        waiting.wait_blocked()
        kill_keeper(own, 2, "devicekeeper")
        assert outcome(waiting) == "EIO"
        terminal = actor.do("open", path, os.O_RDWR | os.O_NOCTTY)
        home.do("write", master, "word\n")
        assert actor.do("read", terminal, 10) == "word\n"


def test_a_system_v_queue(own: Cluster) -> None:
    with ipc.using(own, 1, 2) as [actor, home]:
        queue = home.do("msgget", 0x5515)
        assert actor.do("msgget", 0x5515, 0) == queue
        waiting = actor.begin("msgrcv", queue)
        waiting.wait_blocked()
        kill_keeper(own, 2, "ipckeeper")
        # Asked again: it waits on.
        home.do("msgsnd", queue, 1, "word")
        assert waiting.result() == [1, "word"]
        home.do("rmid", ipc.QUEUE, queue)


def test_a_posix_queue(own: Cluster) -> None:
    with queues.using(own, 1, 2) as [actor, home]:
        queue = home.do("open", "/dying", queues.CREAT | queues.RDWR)
        ours = actor.do("open", "/dying")
        waiting = actor.begin("receive", ours)
        waiting.wait_blocked()
        kill_keeper(own, 2, "queuekeeper")
        assert outcome(waiting) == "EIO"
        ours = actor.do("open", "/dying")
        home.do("send", queue, "word")
        assert actor.do("receive", ours) == [0, "word"]
        home.do("unlink", "/dying")


@pytest.mark.parametrize("node", [1, 2])
def test_a_socket(own: Cluster, node: int) -> None:
    path = f"/root/dying-socket{node}"
    with acting(own, 1, 2) as [client, server]:
        listening = server.do("bind", path)
        for word in ("first", "second"):
            there = client.do("connect", path)
            here = server.do("accept", listening)
            server.do("write", here, word)
            assert client.do("read", there, 10) == word
            waiting = client.begin("read", there, 10)
            waiting.wait_blocked()
            kill_keeper(own, node, "unixkeeper")
            assert outcome(waiting) in {"", "ECONNRESET"}
            assert outcome(server.begin("read", here, 10)) in {"", "ECONNRESET"}


READS = """
import os, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
ours, theirs = socket.socketpair()
if child := os.fork():
    theirs.close()
    print(os.getpid(), child, flush=True)
    signal.sigwait({signal.SIGUSR1})
    try:
        ours.send(b"word")
    except OSError:
        pass
    os.waitpid(child, 0)
else:
    ours.close()
    try:
        said = theirs.recv(10).decode()
    except OSError as error:
        said = str(error.errno)
    print(f"<{said}>", flush=True)
"""


@pytest.mark.parametrize(("node", "ends"), [(1, {"<word>"}), (2, {"<>", f"<{errno.EIO}>"})])
def test_one_end_of_a_pair_has_moved(own: Cluster, node: int, ends: set[str]) -> None:
    with own.start_python(1, READS) as process:
        assert process.stdout
        writer, reader = process.stdout.readline().decode().split()
        own.run(1, "migrate", "2", reader)
        kill_keeper(own, node, "relay")
        own.run(3, "kill", "-USR1", writer)
        out, _ = process.communicate(timeout=60)
    assert out.decode().strip() in ends
