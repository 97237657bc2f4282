"""Three nodes are one: membership, names, one root, locks and mappings that hold between them."""

from __future__ import annotations

import subprocess

import pytest

from support.clusters import Cluster

COUNT = 150


def test_all_see_each_other_and_have_a_vote(trio: Cluster) -> None:
    assert trio.sees_all(1, 2, 3)
    for node in (1, 2, 3):
        quorum = trio.ssi("exec", "-c", str(trio.number), "--ramdisk", str(node), "--",
                          "corosync-quorumtool")  # fmt: skip
        fields = dict(line.partition(":")[::2] for line in quorum.splitlines() if ":" in line)
        assert fields["Expected votes"].strip() == "3"
        assert fields["Total votes"].strip() == "3"


def test_nodes_have_names_and_addresses(trio: Cluster) -> None:
    for node in (1, 2, 3):
        assert trio.run(node, "hostname").strip() == f"node{node}"
        other = node % 3 + 1
        assert f"192.168.50.{other}" in trio.run(node, "getent", "hosts", f"node{other}")
        trio.run(node, "ping", "-c", "1", "-W", "5", f"node{other}")


def test_what_one_writes_all_read(trio: Cluster) -> None:
    trio.run(1, "sh", "-c", "echo from node1 >/root/note")
    assert {trio.run(node, "cat", "/root/note") for node in (1, 2, 3)} == {"from node1\n"}
    trio.run(3, "mv", "/root/note", "/root/note2")
    assert trio.try_run(2, "cat", "/root/note").status == 1
    assert trio.run(1, "cat", "/root/note2") == "from node1\n"
    trio.run(2, "rm", "/root/note2")
    assert trio.try_run(1, "stat", "/root/note2").status == 1


def test_what_differs_by_node_does(trio: Cluster) -> None:
    trio.run(1, "sh", "-c", "echo 1 >/run/mine")
    assert trio.try_run(2, "cat", "/run/mine").status == 1
    assert trio.run(2, "cat", "/cluster/node1/run/mine") == "1\n"
    kinds = trio.run(2, "stat", "-f", "-c", "%T", "/", "/proc", "/sys", "/run").split()
    assert kinds == ["gfs/gfs2", "fuse", "sysfs", "gfs/gfs2"]


def test_there_is_no_way_back_to_the_ramdisk(trio: Cluster) -> None:
    mounts = trio.run(1, "cat", "/proc/self/mounts")
    assert "rootfs" not in mounts
    assert trio.try_run(1, "ls", "/init").status == 2
    # A user namespace of one's own works, which a mere chroot would forbid.
    assert trio.run(1, "unshare", "--user", "--map-root-user", "id", "-u").strip() == "0"


COUNTER = """
import fcntl, os, sys
lock = getattr(fcntl, sys.argv[1])
fd = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
for _ in range(int(sys.argv[3])):
    lock(fd, fcntl.LOCK_EX)
    value = int(os.pread(fd, 20, 0) or b"0")
    os.pwrite(fd, b"%020d" % (value + 1), 0)
    lock(fd, fcntl.LOCK_UN)
"""


def finish(*processes: subprocess.Popen[bytes]) -> list[bytes]:
    """Wait for `processes`, which must succeed; return what they printed."""
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        outputs.append(out)
    return outputs


@pytest.mark.parametrize("lock", ["flock", "lockf"])
def test_locks_exclude_between_nodes(trio: Cluster, lock: str) -> None:
    path = f"/root/counter.{lock}"
    finish(*(trio.start_python(n, COUNTER, lock, path, str(COUNT)) for n in (1, 2, 3)))
    assert int(trio.run(1, "cat", path)) == 3 * COUNT
    trio.run(1, "rm", path)


def test_a_byte_range_locked_elsewhere_is_refused(trio: Cluster) -> None:
    holder = trio.start_python(1, """
import fcntl, os, sys, time
fd = os.open("/root/range", os.O_RDWR | os.O_CREAT)
fcntl.lockf(fd, fcntl.LOCK_EX, 10, 100)
print("held", flush=True)
while os.path.exists("/root/range"):
    time.sleep(0.05)
""")  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    tried = trio.python(2, """
import fcntl, os
fd = os.open("/root/range", os.O_RDWR)
for start in (0, 105, 110):
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, start)
        print("free", start)
    except OSError as error:
        print(error.strerror, start)
os.unlink("/root/range")
""")  # fmt: skip
    assert tried.splitlines() == ["free 0", "Resource temporarily unavailable 105", "free 110"]
    finish(holder)


ALTERNATE = """
import mmap, os, struct, sys
mine, turns = int(sys.argv[1]), int(sys.argv[2])
fd = os.open("/root/shared", os.O_RDWR)
memory = mmap.mmap(fd, 4096)
while True:
    turn, = struct.unpack("Q", memory[:8])
    if turn >= turns:
        break
    if turn % 2 == mine:
        memory[8 + turn] = 65 + mine
        memory[:8] = struct.pack("Q", turn + 1)
"""


def test_a_shared_writable_mapping_is_coherent(trio: Cluster) -> None:
    trio.run(1, "truncate", "-s", "4096", "/root/shared")
    finish(*(trio.start_python(n, ALTERNATE, str(n - 1), "60") for n in (1, 2)))
    assert trio.run(3, "head", "-c", "68", "/root/shared")[8:] == "AB" * 30
    trio.run(3, "rm", "/root/shared")


APPEND = """
import os, sys
fd = os.open("/root/appended", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(int(sys.argv[2])):
    os.write(fd, f"{sys.argv[1]}:{number:06}\\n".encode())
"""


def test_appends_from_all_nodes_are_whole_and_in_order(trio: Cluster) -> None:
    # So many, as a kernel without gfs2-append-at-end.patch overwrites about one in a thousand.
    count = 6000
    finish(*(trio.start_python(n, APPEND, str(n), str(count)) for n in (1, 2, 3)))
    lines = trio.run(2, "cat", "/root/appended").splitlines()
    trio.run(2, "rm", "/root/appended")
    for node in "123":
        mine = [line for line in lines if line.startswith(node)]
        assert mine == [f"{node}:{number:06}" for number in range(count)]
    assert len(lines) == 3 * count


def test_a_rename_is_seen_whole_or_not_at_all(trio: Cluster) -> None:
    writer = trio.start_python(1, """
import os
for number in range(200):
    with open("/root/new", "w") as file:
        file.write(f"{number:05}" * 200)
    os.rename("/root/new", "/root/current")
""")  # fmt: skip
    finish(writer, trio.start_python(2, """
import os
seen = set()
while "00199" not in seen:
    try:
        text = open("/root/current").read()
    except FileNotFoundError:
        continue
    assert len(text) == 1000 and text == text[:5] * 200, text[:40]
    seen.add(text[:5])
os.unlink("/root/current")
"""))  # fmt: skip
