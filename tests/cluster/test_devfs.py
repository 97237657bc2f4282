"""/devfs has the devices of all nodes, and what is done to them is done on their nodes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import select
import stat
import struct
import termios
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import Actor, Doing, Refused, acting
from support.terminal import PASSWORD, attached

LOOK = """
import json, os, stat, sys
found = {}
for folder, names, files in os.walk(sys.argv[1]):
    for name in names + files:
        path = os.path.join(folder, name)
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        if kind in (stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFLNK):
            found[os.path.relpath(path, sys.argv[1])] = [
                status.st_mode, status.st_rdev, status.st_uid, status.st_gid,
                os.readlink(path) if kind == stat.S_IFLNK else "",
            ]
print(json.dumps(found))
"""

SIZE = 1 << 20
NOBODY = 65534
BLKGETSIZE64, BLKSSZGET, BLKFLSBUF, HDIO_GETGEO = 0x80081272, 0x1268, 0x1261, 0x0301
UNKNOWN = 0xC0FF5399

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        yield cluster


@pytest.fixture
def trio(own: Cluster) -> Cluster:
    """They, all up."""
    own.restore(1, 2, 3)
    return own


@pytest.fixture
def loop(trio: Cluster) -> Iterator[str]:
    """The name of a block device of node 2."""
    path = f"/dev/shm/disk{next(_numbers)}"
    trio.run(2, "mkdir", "-p", "/dev/shm")
    trio.run(2, "truncate", "-s", str(SIZE), path)
    name = trio.run(2, "losetup", "-f", "--show", path).strip().removeprefix("/dev/")
    yield name
    trio.try_run(2, "losetup", "-d", f"/dev/{name}")
    trio.run(2, "rm", path)


def refused(actor: Actor, *words: object) -> int:
    """Return the error with which a call fails."""
    with pytest.raises(Refused) as caught:
        actor.do(*words)  # type: ignore[arg-type]
    return caught.value.number


def has_ended(reading: Doing) -> bool:
    """Tell whether somebody who was reading a terminal has been told that it is gone."""
    try:
        return bool(reading.result() == "")
    except Refused as refusal:
        # The kernel says that, too, before all is hung up.
        return refusal.number == errno.EIO


def look(cluster: Cluster, node: int, path: str) -> dict[str, list[object]]:
    """Return what there is below a folder."""
    found: dict[str, list[object]] = json.loads(cluster.python(node, LOOK, path))
    return found


def test_every_node_shows_all(trio: Cluster) -> None:
    assert trio.run(1, "ls", "/devfs").split() == ["node1", "node2", "node3"]
    there = {
        name: what for name, what in look(trio, 2, "/dev").items()
        if name.split("/")[0] not in {"shm", "mqueue"}  # the cluster's
    }  # fmt: skip
    assert there["null"][:2] == [stat.S_IFCHR | 0o666, os.makedev(1, 3)]
    for node in (1, 2, 3):
        shown = look(trio, node, "/devfs/node2")
        assert {name: shown.get(name) for name in there} == there
    listed = trio.run(3, "ls", "-l", "/devfs/node1/console", "/devfs/node1/null").splitlines()
    assert [line.split()[0][0] for line in listed] == ["c", "c"]
    assert "1, 3" in listed[1].replace("1,   3", "1, 3")


def test_the_one_of_the_node_is_the_device_itself(trio: Cluster) -> None:
    script = "import os; print(os.stat('/dev/null') == os.stat('/devfs/node2/null'))"
    assert trio.python(2, script) == "True\n"
    assert trio.python(1, script) == "False\n"


def test_the_example_of_2002(trio: Cluster) -> None:
    with attached(trio, 1) as terminal:
        terminal.log_in()
        trio.run(3, "sh", "-c", 'echo "Hello World" >/devfs/node1/console')
        terminal.expect("Hello World\r\n")


def test_simple_devices(trio: Cluster) -> None:
    with acting(trio, 1) as [actor]:
        null = actor.do("open", "/devfs/node2/null", os.O_RDWR)
        assert actor.do("write", null, "gone") == 4
        assert actor.do("read", null, 10) == ""
        assert actor.do("lseek", null, 5, os.SEEK_SET) == 0
        zero = actor.do("open", "/devfs/node2/zero", os.O_RDONLY)
        assert actor.do("read", zero, 100000) == "\0" * 100000
        assert actor.do("poll", zero, select.POLLIN, 0) == select.POLLIN
        random = actor.do("open", "/devfs/node2/urandom", os.O_RDONLY)
        assert len(set(actor.do("read", random, 100))) > 20
        full = actor.do("open", "/devfs/node2/full", os.O_WRONLY)
        assert refused(actor, "write", full, "words") == errno.ENOSPC
        for fd in (null, zero, random, full):
            assert not actor.do("isatty", fd)
            assert refused(actor, "control", fd, UNKNOWN, "00" * 256) == errno.ENOTTY
            actor.do("close", fd)
        assert refused(actor, "open", "/devfs/node2/none", os.O_RDONLY) == errno.ENOENT
        assert refused(actor, "open", "/devfs/node2/new", os.O_CREAT | os.O_RDWR) == errno.EROFS
        assert refused(actor, "open", "/devfs/node9/null", os.O_RDONLY) == errno.ENOENT
    assert trio.run(1, "dd", "if=/dev/zero", "of=/devfs/node3/null", "bs=1M", "count=2") == ""


def test_permissions_are_those_on_its_node(trio: Cluster, loop: str) -> None:
    there, here = f"/dev/{loop}", f"/devfs/node2/{loop}"
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    read = [*drop, "head", "-c1", here]
    assert "Permission denied" in trio.try_run(1, *read).err
    trio.run(2, "chown", str(NOBODY), there)
    wait_until(lambda: trio.try_run(1, *read).status == 0, "its owner may read it")
    # What only root may ask of a driver stays so.
    assert "denied" in trio.try_run(1, *drop, "blockdev", "--flushbufs", here).err
    trio.run(1, "blockdev", "--flushbufs", here)
    trio.run(2, "chown", "0", there)
    wait_until(lambda: trio.try_run(1, *read).status != 0, "he may not any more")
    groups = [*drop[:-1], "--groups=6", "head", "-c1", here]
    trio.run(2, "chgrp", "6", there)
    trio.run(2, "chmod", "640", there)
    wait_until(lambda: trio.try_run(1, *groups).status == 0, "a member of its group may read it")


def test_a_block_device(trio: Cluster, loop: str) -> None:
    path = f"/devfs/node2/{loop}"
    assert trio.run(1, "blockdev", "--getsize64", "--getss", path).split() == [str(SIZE), "512"]
    with acting(trio, 1) as [actor]:
        fd = actor.do("open", path, os.O_RDWR)
        assert actor.do("control", fd, BLKGETSIZE64, "00" * 8) == struct.pack("=Q", SIZE).hex()
        assert actor.do("lseek", fd, 0, os.SEEK_END) == SIZE
        assert actor.do("read", fd, 10) == ""
        assert refused(actor, "write", fd, "too far") == errno.ENOSPC
        assert actor.do("lseek", fd, -10, os.SEEK_CUR) == SIZE - 10
        assert actor.do("write", fd, "at the end...") == 10
        assert actor.do("pwrite", fd, "in the midst", 70000) == 12
        assert actor.do("pread", fd, 20, 69998) == "\0\0in the midst" + "\0" * 6
        assert actor.do("lseek", fd, 0, os.SEEK_CUR) == SIZE
        assert refused(actor, "lseek", fd, -1, os.SEEK_SET) == errno.EINVAL
        actor.do("fsync", fd)
        actor.do("control", fd, BLKFLSBUF, 0)
        assert not actor.do("isatty", fd)
        # What would take a descriptor of this node's for one of its own: LOOP_SET_FD.
        assert refused(actor, "control", fd, 0x4C00, 0) == errno.ENOTTY
        actor.do("close", fd)
    data = os.urandom(100000)
    trio.ssi("exec", "-c", str(trio.number), "3", "--", "dd", f"of={path}", "bs=7000",
             "conv=notrunc", "status=none", given=data)  # fmt: skip
    script = "import sys; sys.stdout.write(open(sys.argv[1], 'rb').read(100000).hex())"
    assert bytes.fromhex(trio.python(2, script, f"/dev/{loop}")) == data
    assert bytes.fromhex(trio.python(1, script, path)) == data


def test_nothing_takes_it_for_a_device_of_this_node(trio: Cluster, loop: str) -> None:
    """Its numbers are those of the disk and the swap space that this node has itself."""
    assert trio.try_run(1, "mount", "-t", "gfs2", "/dev/ubda", "/mnt").status == 0
    trio.run(1, "umount", "/mnt")
    assert trio.try_run(1, "mount", "-t", "gfs2", "/devfs/node2/ubda", "/mnt").status != 0
    trio.run(2, "mkswap", f"/dev/{loop}")
    assert trio.run(1, "blkid", "-p", "-s", "TYPE", "-o", "value", f"/devfs/node2/{loop}") == (
        "swap\n"
    )
    assert trio.try_run(1, "swapon", f"/devfs/node2/{loop}").status != 0
    trio.run(1, "losetup", "-d", f"/devfs/node2/{loop}")
    assert loop not in trio.run(2, "losetup", "-a")


@pytest.fixture
def pty(trio: Cluster) -> Iterator[tuple[Actor, int, Actor, int]]:
    """A process on node 2 with the master of a terminal, one on node 1 with the other end."""
    with acting(trio, 2, 1) as [there, here]:
        master, slave, name = there.do("openpty")
        there.do("close", slave)
        path = f"/devfs/node2/{name.removeprefix('/dev/')}"
        yield there, master, here, here.do("open", path, os.O_RDWR | os.O_NOCTTY)


def test_a_terminal(trio: Cluster, pty: tuple[Actor, int, Actor, int]) -> None:
    there, master, here, fd = pty
    assert here.do("isatty", fd)
    assert stat.S_ISCHR(here.do("mode", fd))
    assert refused(here, "lseek", fd, 0, os.SEEK_SET) == errno.ESPIPE
    assert refused(here, "control", fd, UNKNOWN, "00" * 256) == errno.ENOTTY
    assert refused(here, "control", fd, termios.TIOCSCTTY, 0) == errno.ENOTTY
    assert refused(here, "control", fd, BLKGETSIZE64, "00" * 8) == errno.ENOTTY
    size = struct.pack("=4H", 31, 97, 0, 0).hex()
    here.do("control", fd, termios.TIOCSWINSZ, size)
    assert there.do("control", master, termios.TIOCGWINSZ, "00" * 8) == size
    assert trio.run(3, "stty", "-F", here.do("where", fd), "size") == "31 97\n"
    here.do("blocking", fd, False)
    assert refused(here, "read", fd, 10) == errno.EAGAIN
    here.do("blocking", fd, True)
    reading = here.begin("read", fd, 100)
    reading.wait_blocked()
    # And it can be written to and asked meanwhile.
    assert here.do("write", fd, "a prompt\n") == 9
    assert there.do("read", master, 100) == "a prompt\r\n"
    assert here.do("control", fd, termios.TIOCGWINSZ, "00" * 8) == size
    there.do("write", master, "a line\n")
    assert reading.result() == "a line\n"
    assert there.do("read", master, 100) == "a line\r\n"
    polling = here.begin("poll", fd, select.POLLIN, 60000)
    polling.wait_blocked()
    assert here.do("poll", fd, select.POLLOUT, 0) == select.POLLOUT
    there.do("write", master, "more\n")
    assert polling.result() == select.POLLIN
    assert here.do("epoll", fd, select.POLLIN, 1000) == select.POLLIN
    assert here.do("pending", fd) == 5
    assert here.do("read", fd, 100) == "more\n"
    reading = here.begin("read", fd, 100)
    reading.wait_blocked()
    there.do("close", master)
    assert has_ended(reading)


def test_a_large_write_waits(pty: tuple[Actor, int, Actor, int]) -> None:
    there, master, here, fd = pty
    writing = here.begin("write", fd, "x" * 100000)
    writing.wait_blocked()
    got = 0
    while got < 100000:
        got += len(there.do("read", master, 65536))
    assert writing.result() == 100000


def test_a_blocked_call_is_interrupted(trio: Cluster, pty: tuple[Actor, int, Actor, int]) -> None:
    there, master, here, fd = pty
    path = here.do("where", fd)
    script = 'timeout -s INT 2 cat <"$0"; echo $?'
    assert trio.run(1, "sh", "-c", script, path) == "124\n"
    assert trio.run(3, "sh", "-c", script, path) == "124\n"
    # Nothing was taken along.
    there.do("write", master, "for the living\n")
    assert here.do("read", fd, 100) == "for the living\n"
    # Whoever waits until all is written waits in the driver itself.
    there.do("control", master, termios.TCFLSH, termios.TCIOFLUSH)
    here.do("write", fd, "unread")
    drain = f"import termios; termios.tcdrain(open({path!r}, 'r+b', buffering=0))"
    trio.try_run(1, "timeout", "-s", "INT", "2", "python3", "-c", drain)
    assert here.do("control", fd, termios.TIOCOUTQ, "00" * 4)


def test_who_has_one_open(trio: Cluster, loop: str) -> None:
    """He does not move; what he starts elsewhere has it as well."""
    script = """\
exec 3<$0
sleep 1000 & p=$!
exec 3<&-
cd /devfs/node2
migrate --check $p; cd /; kill $p
printf words >$0
onnode 3 head -c 5 <$0
"""
    path = f"/devfs/node2/{loop}"
    said = trio.run(1, "sh", "-c", script, path)
    assert f"is the device {path}" in said
    assert said.endswith("words")


def test_a_terminal_made_from_afar(trio: Cluster) -> None:
    with acting(trio, 1) as [actor]:
        master = actor.do("open", "/devfs/node3/ptmx", os.O_RDWR | os.O_NOCTTY)
        number = struct.unpack("=I", bytes.fromhex(
            actor.do("control", master, 0x80045430, "00" * 4)  # TIOCGPTN
        ))[0]  # fmt: skip
        actor.do("control", master, 0x40045431, "00" * 4)  # TIOCSPTLCK
        slave = actor.do("open", f"/devfs/node3/pts/{number}", os.O_RDWR | os.O_NOCTTY)
        actor.do("write", slave, "hello")
        assert actor.do("read", master, 100) == "hello"
        actor.do("close", master)
        assert actor.do("read", slave, 100) == ""


@pytest.mark.parametrize("killed", [1, 2])
def test_a_daemon_is_killed(trio: Cluster, loop: str, killed: int) -> None:
    with acting(trio, 2, 1, via=3) as [there, here]:
        master, slave, name = there.do("openpty")
        there.do("close", slave)
        fd = here.do("open", f"/devfs/node2/{name.removeprefix('/dev/')}", os.O_RDWR | os.O_NOCTTY)
        block = here.do("open", f"/devfs/node2/{loop}", os.O_RDWR)
        for number in range(2):
            reading = here.begin("read", fd, 100)
            reading.wait_blocked()
            kill_daemon(trio, killed)
            there.do("write", master, f"line {number}\n")
            assert reading.result() == f"line {number}\n"
            assert here.do("write", fd, f"{number}\n") == 2
            assert there.do("read", master, 100).endswith(f"{number}\r\n")
            polling = here.begin("poll", fd, select.POLLIN, 60000)
            polling.wait_blocked()
            text = f"{number}" * 1000
            kill_daemon(trio, killed)
            assert here.do("pwrite", block, text, 1000 * number) == 1000
            assert here.do("pread", block, 1000, 1000 * number) == text
            assert len(trio.run(3, "ls", f"/devfs/node{killed}").split()) > 10
            there.do("write", master, "more\n")
            assert polling.result() == select.POLLIN
            assert here.do("read", fd, 100) == "more\n"
            assert there.do("read", master, 100) == "more\r\n"
        reading = here.begin("read", fd, 100)
        reading.wait_blocked()
        kill_daemon(trio, killed)
        there.do("close", master)
        assert has_ended(reading)
        here.do("close", fd)
        here.do("close", block)


def holders(cluster: Cluster, node: int) -> int:
    """Return how many devices of a node others have open."""
    script = "ps -o comm | grep -c ssi-device; true"
    found = cluster.ssi(
        "exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", script
    )
    return int(found)


def test_the_node_that_uses_it_dies(trio: Cluster) -> None:
    with acting(trio, 2) as [there]:
        wait_until(lambda: holders(trio, 2) == 0, "all are closed")
        with acting(trio, 3) as [user]:
            master, slave, name = there.do("openpty")
            there.do("close", slave)
            path = f"/devfs/node2/{name.removeprefix('/dev/')}"
            user.do("open", path, os.O_RDWR | os.O_NOCTTY)
            assert holders(trio, 2) == 1
            reading = there.begin("read", master, 10)
            trio.crash(3)
            with pytest.raises(Refused) as caught:
                reading.result()
            assert caught.value.number == errno.EIO
        wait_until(lambda: holders(trio, 2) == 0, "its descriptors are closed")


def test_the_devices_node_dies(trio: Cluster) -> None:
    with acting(trio, 3) as [there], acting(trio, 1) as [here]:
        _, slave, name = there.do("openpty")
        there.do("close", slave)
        path = f"/devfs/node3/{name.removeprefix('/dev/')}"
        fd = here.do("open", path, os.O_RDWR | os.O_NOCTTY)
        null = here.do("open", "/devfs/node3/null", os.O_RDWR)
        reading, polling = here.begin("read", fd, 10), here.begin("poll", fd, select.POLLIN, 60000)
        reading.wait_blocked()
        polling.wait_blocked()
        writing = here.begin("write", fd, "x" * 100000)
        writing.wait_blocked()
        trio.crash(3)
        with pytest.raises(Refused) as caught:
            reading.result()
        assert caught.value.number == errno.EIO
        # What was written is written.
        with contextlib.suppress(Refused):
            assert writing.result() < 100000
        assert polling.result() & (select.POLLERR | select.POLLIN)
        assert refused(here, "write", null, "words") == errno.EIO
        assert refused(here, "control", fd, termios.TCGETS, "00" * 36) == errno.EIO
        here.do("close", fd)
        wait_until(
            lambda: trio.run(1, "ls", "/devfs").split() == ["node1", "node2"], "it is not shown"
        )
        assert refused(here, "open", "/devfs/node3/null", os.O_RDONLY) == errno.ENOENT
        trio.restore(1, 2, 3)
        # It is another life of the node.
        assert refused(here, "write", null, "words") == errno.EIO
        fresh = here.do("open", "/devfs/node3/null", os.O_RDWR)
        assert here.do("write", fresh, "words") == 5


def test_a_node_whose_devices_are_used_leaves(trio: Cluster) -> None:
    with acting(trio, 1) as [here]:
        zero = here.do("open", "/devfs/node3/zero", os.O_RDONLY)
        assert here.do("read", zero, 3) == "\0\0\0"
        trio.run(1, "clusternode_shutdown", "3")
        wait_until(lambda: trio.sees_all(1, 2), "it has left")
        assert refused(here, "read", zero, 3) == errno.EIO
