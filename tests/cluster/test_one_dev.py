"""/dev is one: wherever a process runs its names mean the devices of its home."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import BRIDGE, PORTS, Actor, Refused, acting
from support.terminal import PASSWORD, attached

SIZE = 1 << 16
DISK = "/dev/loop0"

# Names that need no daemon, tried while the one of this node is stopped.
ALIKE = """
import os, signal, sys
daemon = next(
    int(name) for name in os.listdir("/run/ssi/proc") if name.isdigit() and int(name) < 1 << 15
    and b"ssi.node" in open(f"/run/ssi/proc/{name}/cmdline", "rb").read()
)
names = ["null", "zero", "full", "random", "urandom", "ptmx"]
def use():
    for name in names:
        with open(f"/dev/{name}", "rb", 0) as file:
            assert name in ("null", "ptmx") or len(file.read(10)) == 10, name
            assert os.readlink(f"/proc/self/fd/{file.fileno()}") == f"/dev/{name}"
    assert open("/dev/stdin").fileno() and os.path.exists("/dev/fd/0")
    with open("/dev/null", "w") as file:
        assert os.fstat(file.fileno()) == os.stat(f"/devfs/node{sys.argv[1]}/null")
use()
signal.signal(signal.SIGALRM, lambda *_: os.kill(daemon, signal.SIGCONT))
os.kill(daemon, signal.SIGSTOP)
signal.setitimer(signal.ITIMER_REAL, 10)
try:
    for _ in range(100):
        with open("/dev/null", "w") as file:
            file.write("words")
    assert os.access("/dev/zero", os.R_OK) and os.stat("/dev/urandom").st_rdev
    left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
finally:
    os.kill(daemon, signal.SIGCONT)
print("at once" if left else "it waited")
"""

# A terminal of its own, and a shell in it that has it for its terminal.
SPAWN = """
import os, pty, sys
status = pty.spawn(["sh", "-c", "tty; tty </dev/tty; echo to you >/dev/tty; ls -l $(tty)"])
sys.exit(os.waitstatus_to_exitcode(status))
"""

CHANGE = """
import os
_, fd = os.openpty()
path = os.ttyname(fd)
os.chmod(path, 0o600)
print(path, oct(os.fstat(fd).st_mode))
"""


class Visitor(Actor):
    """A process of `home` that runs on `node`; it outlives its home."""

    def __init__(self, cluster: Cluster, home: int, node: int, via: int) -> None:
        self.home = home
        super().__init__(cluster, node, via)

    def _start_apart(self, via: int) -> subprocess.Popen[bytes]:
        port = str(next(PORTS))
        script = 'setsid onnode $2 python3 -c "$0" $1 >/dev/null 2>&1 </dev/null & echo $!'
        words = ["sh", "-c", script, self.agent, port, str(self.node)]
        self.pid = int(self.cluster.run(self.home, *words))
        exec_ = ["ssi", "exec", "-c", str(self.cluster.number), str(via), "--"]
        return self.cluster.ssi.person.start(
            [*exec_, "python3", "-c", BRIDGE, f"192.168.50.{self.node}", port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes; the first block device of each says which it is."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        for node in (1, 2, 3):
            set_up(cluster, node)
        yield cluster
        # It is a file of the root, which nobody could unmount.
        for node in (1, 2, 3):
            cluster.try_run(node, "losetup", "-d", DISK)


def set_up(cluster: Cluster, node: int) -> None:
    """Give a node a block device that has its number in it."""
    disk = "/run/disk"
    script = f"printf node{node} >{disk}; truncate -s {SIZE} {disk}; losetup {DISK} {disk}"
    cluster.run(node, "sh", "-c", script)


@pytest.fixture
def trio(own: Cluster) -> Cluster:
    """They, all up."""
    own.restore(1, 2, 3)
    return own


def refused(actor: Actor, *words: object) -> int:
    """Return the error with which a call fails."""
    with pytest.raises(Refused) as caught:
        actor.do(*words)  # type: ignore[arg-type]
    return caught.value.number


def read_disk(actor: Actor) -> str:
    """Return what is on the block device that a process finds."""
    fd = actor.do("open", DISK, os.O_RDONLY)
    found: str = actor.do("pread", fd, 5, 0)
    actor.do("close", fd)
    return found


def test_typed(trio: Cluster) -> None:
    with attached(trio, 1) as terminal:
        terminal.log_in()
        said = terminal.run("onnode 2 sh -c 'echo Hello World >/dev/console'")
        assert "Hello World\n" in said
        # Each has its own terminal, and /dev/tty is the one.
        script = "echo rea''dy; read word; echo $word to you >/dev/tty"
        terminal.type(f'onnode 2 sh -c "{script}" </dev/tty\r'.replace("$", "\\$"))
        terminal.expect("ready\r\n")
        terminal.type("greetings\r")
        terminal.expect("greetings to you\r\n")
        terminal.expect(r"root@node1:[^ ]*# ")
        said = terminal.run("onnode 2 script -qec 'tty; echo in''side >/dev/tty' /dev/null")
        assert "/dev/pts/4096" in said
        assert "inside" in said


def test_names_are_those_of_home(trio: Cluster) -> None:
    read = ["head", "-c", "5", DISK]
    for node in (1, 2, 3):
        assert trio.run(node, *read) == f"node{node}"
        assert trio.run(1, "onnode", str(node), *read) == "node1"
    # And of whom it starts, wherever that is.
    assert trio.run(1, "onnode", "2", "sh", "-c", f"onnode 3 head -c 5 {DISK}") == "node1"
    assert trio.run(1, "onnode", "2", "onnode", "1", *read) == "node1"
    assert trio.run(2, "onnode", "1", "sh", "-c", f"cat </dev/null; head -c 5 {DISK}") == "node2"
    there = set(trio.run(1, "ls", "/dev").split())
    assert set(trio.run(1, "onnode", "2", "ls", "/dev").split()) == there
    listed = trio.run(1, "ls", "-l", DISK, "/dev/console", "/dev/null", "/dev/stdin")
    assert trio.run(1, "onnode", "3", "ls", "-l", DISK, "/dev/console", "/dev/null",
                    "/dev/stdin") == listed  # fmt: skip
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert "denied" in trio.try_run(1, *drop, "onnode", "2", *read).err
    assert "Read-only" in trio.try_run(1, "onnode", "2", "touch", "/dev/new").err


def test_what_is_alike_is_here(trio: Cluster) -> None:
    assert trio.run(1, "onnode", "2", "python3", "-c", ALIKE, "2") == "at once\n"
    # Also where nothing is another node's.
    assert trio.run(2, "onnode", "1", "onnode", "2", "python3", "-c", ALIKE, "2") == "at once\n"
    trio.run(1, "onnode", "2", "sh", "-c", "echo words >/dev/shm/words")
    assert trio.run(3, "cat", "/dev/shm/words") == "words\n"
    system = ["stat", "-f", "-c", "%T", "/dev/mqueue"]
    assert trio.run(1, "onnode", "2", *system) == trio.run(2, *system)


def test_terminals(trio: Cluster) -> None:
    """Each has a name that means it everywhere, and who makes one has it where he is."""
    said = trio.run(1, "onnode", "2", "python3", "-c", SPAWN).replace("\r", "").splitlines()
    name = said[0]
    assert name.startswith("/dev/pts/4")
    assert said[1:3] == ["/dev/tty", "to you"] or said[1:3] == [name, "to you"]
    assert said[3].startswith("crw")
    assert said[3].endswith(name)
    with acting(trio, 1, 3) as actors:
        for node, actor in zip((1, 3), actors, strict=True):
            master, slave, path = actor.do("openpty")
            assert int(path.removeprefix("/dev/pts/")) >> 12 == node - 1
            trio.run(1, "onnode", "2", "sh", "-c", f"test -c {path} && echo to {path} >{path}")
            assert actor.do("read", master, 100) == f"to {path}\r\n"
            assert path in trio.run(node, "onnode", "2", "sh", "-c", "echo /dev/pts/*").split()
            actor.do("close", slave)
            actor.do("close", master)
    # The mode of one's own is changed by its name.
    assert trio.run(1, "onnode", "2", "python3", "-c", CHANGE).endswith(" 0o20600\n")


def test_a_process_moves(trio: Cluster) -> None:
    with acting(trio, 1, 3) as [actor, other]:
        null = actor.do("open", "/dev/null", os.O_RDWR)
        for node in (2, 3, 1, 3):
            trio.run(1, "migrate", str(node), str(actor.pid))
            assert trio.run(1, "where_pid", str(actor.pid)) == f"{node}\n"
            assert read_disk(actor) == "node1"
            assert actor.do("write", null, "words") == 5
            assert actor.do("where", null) == "/dev/null"
            zero = actor.do("open", "/dev/zero", os.O_RDONLY)
            assert actor.do("read", zero, 3) == "\0\0\0"
        # A terminal of the node where it is stays, and it has it open all the same.
        master, _, path = other.do("openpty")
        slave = actor.do("open", path, os.O_RDWR | os.O_NOCTTY)
        trio.run(1, "migrate", "2", str(actor.pid))
        actor.do("write", slave, "along\n")
        assert other.do("read", master, 100) == "along\r\n"
        # What keeps it is said.
        own, _, _ = actor.do("openpty")
        disk = actor.do("open", DISK, os.O_RDONLY)
        assert trio.try_run(1, "migrate", "--check", str(actor.pid)).out.splitlines() == [
            f"{actor.pid}: descriptor {own} is the device /dev/ptmx",
            f"{actor.pid}: descriptor {disk} is the device {DISK} of another node",
        ]


@pytest.mark.parametrize("killed", [1, 2])
def test_a_daemon_is_killed(trio: Cluster, killed: int) -> None:
    with acting(trio, 1, via=3) as [there]:
        visitor = Visitor(trio, 1, 2, 3)
        try:
            master, slave, path = there.do("openpty")
            there.do("close", slave)
            fd = visitor.do("open", path, os.O_RDWR | os.O_NOCTTY)
            null = visitor.do("open", "/dev/null", os.O_RDWR)
            for number in range(2):
                reading = visitor.begin("read", fd, 100)
                reading.wait_blocked()
                kill_daemon(trio, killed)
                there.do("write", master, f"line {number}\n")
                assert reading.result() == f"line {number}\n"
                assert there.do("read", master, 100) == f"line {number}\r\n"
                assert read_disk(visitor) == "node1"
                assert visitor.do("write", null, "words") == 5
            # Who comes now has the same /dev.
            assert trio.run(1, "onnode", "2", "head", "-c", "5", DISK) == "node1"
        finally:
            visitor.close()


def test_its_home_dies(trio: Cluster) -> None:
    with acting(trio, 3) as [there]:
        visitor = Visitor(trio, 3, 2, 1)
        try:
            _, slave, path = there.do("openpty")
            there.do("close", slave)
            fd = visitor.do("open", path, os.O_RDWR | os.O_NOCTTY)
            reading = visitor.begin("read", fd, 10)
            reading.wait_blocked()
            assert read_disk(visitor) == "node3"
            trio.crash(3)
            with pytest.raises(Refused) as caught:
                reading.result()
            assert caught.value.number == errno.EIO
            wait_until(
                lambda: refused(visitor, "open", DISK, os.O_RDONLY) in {errno.EIO, errno.ENOENT},
                "it is known",
            )
            null = visitor.do("open", "/dev/null", os.O_RDWR)
            assert visitor.do("write", null, "words") == 5
            zero = visitor.do("open", "/dev/zero", os.O_RDONLY)
            assert visitor.do("poll", zero, select.POLLIN, 0) == select.POLLIN
            master, own_slave, name = visitor.do("openpty")
            assert int(name.removeprefix("/dev/pts/")) >> 12 == 1
            visitor.do("write", own_slave, "mine\n")
            assert visitor.do("read", master, 10) == "mine\r\n"
            # It moves as before.
            for one in (fd, master, own_slave):
                visitor.do("close", one)
            trio.restore(1, 2, 3)
            set_up(trio, 3)
            assert read_disk(visitor) == "node3"
        finally:
            trio.try_run(2, "kill", f"-{signal.SIGKILL}", str(visitor.pid))
            visitor.close()
