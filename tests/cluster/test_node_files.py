"""What must differ by node does, and /cluster/nodeN shows it to all; everything else is one."""

from __future__ import annotations

from functools import partial

import pytest

from support.clusters import Cluster, Ssi, started, wait_until

NODES = (1, 2, 3)


def test_names(trio: Cluster) -> None:
    for node in NODES:
        assert trio.run(node, "hostname").strip() == f"node{node}"
        assert trio.run(node, "cat", "/etc/hostname").strip() == f"node{node}"
        for other in NODES:
            seen = trio.run(node, "cat", f"/cluster/node{other}/etc/hostname")
            assert seen.strip() == f"node{other}"


def test_what_is_run_here_is_seen_there(trio: Cluster) -> None:
    trio.run(1, "sh", "-c", "echo 1 >/run/mine")
    assert trio.try_run(2, "cat", "/run/mine").status == 1
    assert trio.run(2, "cat", "/cluster/node1/run/mine") == "1\n"
    assert trio.run(1, "stat", "-c", "%a %U", "/run", "/run/lock").split() == [
        "755", "root", "1777", "root",
    ]  # fmt: skip
    assert trio.run(1, "stat", "-c", "%a %G", "/run/utmp").split() == ["664", "utmp"]


RUN = """
import fcntl, os, socket, subprocess, sys
os.chdir("/run/lock")
os.umask(0o027)
with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
    server.bind("socket")
    server.listen()
    client.connect("socket")
os.mkfifo("fifo")
writer = subprocess.Popen(["sh", "-c", "echo hello >fifo"])
with open("fifo") as fifo:
    assert fifo.read() == "hello\\n"
writer.wait()
def is_free(lock):
    script = f"import fcntl; fcntl.{lock}(open('file', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run(["python3", "-c", script], stderr=subprocess.DEVNULL).returncode == 0
for lock in ("flock", "lockf"):
    with open("file", "w") as file:
        getattr(fcntl, lock)(file, fcntl.LOCK_EX)
        assert not is_free(lock)
    assert is_free(lock)
print(oct(os.stat("file").st_mode), oct(os.stat("fifo").st_mode))
for name in ("socket", "fifo", "file"):
    os.unlink(name)
"""


def test_run_is_fit_for_what_programs_do_there(trio: Cluster) -> None:
    assert trio.python(1, RUN) == "0o100640 0o10640\n"


def test_a_socket_of_another_node_is_refused(trio: Cluster) -> None:
    trio.python(1, "import socket; socket.socket(socket.AF_UNIX).bind('/run/other')")
    tried = trio.python(2, """
import socket
try:
    socket.socket(socket.AF_UNIX).connect("/cluster/node1/run/other")
except OSError as error:
    print(error.strerror)
""")  # fmt: skip
    assert tried == "Connection refused\n"
    trio.run(1, "rm", "/run/other")


def wait_for_line(cluster: Cluster, node: int, path: str, text: str) -> None:
    """Wait until `node` finds `text` in the file at `path`."""
    wait_until(
        lambda: cluster.try_run(node, "grep", "-q", text, path).status == 0, f"{text} in {path}"
    )


def test_logs_of_all_daemons_are_on_the_root(trio: Cluster) -> None:
    for node in NODES:
        path = f"/cluster/node{node}/var/log/cluster"
        wait_for_line(trio, node, f"{path}/ssid.log", "phase ready")
        for other in NODES:
            assert f"node{node} view" in trio.run(other, "cat", f"{path}/ssid.log")
        assert f"node{node} view" in trio.run(node, "cat", "/var/log/cluster/corosync.log")
        assert "started" in trio.run(node, "cat", "/var/log/cluster/dlm_controld.log")


LIST = """
import os, stat, sys
for folder, folders, names in os.walk(sys.argv[1]):
    folders[:] = [name for name in folders if name not in ("pts", "shm")]
    for name in names:
        path = os.path.join(folder, name)
        status = os.lstat(path)
        link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
        print(os.path.relpath(path, sys.argv[1]), oct(status.st_mode), status.st_uid, status.st_gid,
              link)
"""


def list_devices(cluster: Cluster, node: int, folder: str) -> list[str]:
    """Return what `node` sees in `folder`: names, kinds, modes, owners.

    Not the console: its login has changed it since. Not the numbers: GFS2 gives 0 for them on nodes
    that did not make the file.
    """
    lines = cluster.python(node, LIST, folder).splitlines()
    return sorted(line for line in lines if not line.startswith("tty0 "))


def test_devices_are_listed_and_not_opened(trio: Cluster) -> None:
    wait_until(
        lambda: trio.try_run(1, "test", "-e", "/cluster/node2/dev/null").status == 0, "its list"
    )
    null = trio.run(1, "stat", "-c", "%F %a", "/cluster/node2/dev/null")
    assert null == "character special file 666\n"
    listed = list_devices(trio, 1, "/cluster/node2/dev")
    assert listed == list_devices(trio, 2, "/dev")
    assert len(listed) > 50
    for name in ("null", "ubda", "tty0"):
        tried = trio.try_run(1, "dd", f"if=/cluster/node2/dev/{name}", "count=1")
        assert tried.status == 1
        assert "Permission denied" in tried.err
    assert trio.try_run(2, "sh", "-c", ": >/cluster/node2/dev/null").status != 0
    assert trio.run(2, "sh", "-c", "echo x >/dev/null; head -c1 /dev/zero | wc -c").strip() == "1"


def test_links_of_devices(trio: Cluster) -> None:
    seen = trio.run(
        1, "bash", "-c", "cat <(echo one) && echo two >/dev/stdout && cat /dev/stdin </etc/hostname"
    )
    assert seen == "one\ntwo\nnode1\n"
    assert trio.try_run(1, "sh", "-c", "echo three >/dev/stderr").err == "three\n"


def has_login(cluster: Cluster, node: int) -> bool:
    """Tell whether a login waits on the node's console."""
    return "LOGIN" in cluster.run(node, "who", "-l", "/run/utmp")


def test_who_is_logged_in_where(trio: Cluster) -> None:
    """The logins that wait on each node's console are in its own utmp.

    The file is named, as trixie's `who` without one asks systemd-logind, which no node has.
    """
    for node in NODES:
        wait_until(partial(has_login, trio, node), f"node{node}'s login")
        own = trio.run(node, "who", "-l", "/run/utmp").split()
        others = trio.run(node % 3 + 1, "who", "-l", f"/cluster/node{node}/run/utmp").split()
        assert own == others


def test_everything_else_is_one(trio: Cluster) -> None:
    for path in ("/etc/one", "/var/log/one", "/root/one", "/usr/one", "/cluster/one"):
        trio.run(1, "sh", "-c", f"echo here >{path}")
        assert trio.run(2, "cat", path) == "here\n"
        trio.run(3, "rm", path)
        assert trio.try_run(1, "cat", path).status == 1


def test_a_node_begins_with_an_empty_run(trio: Cluster) -> None:
    trio.run(3, "sh", "-c", "mkdir -p /run/a/b; echo 1 >/run/a/b/c; touch /run/.d; sync -f /run")
    before = trio.run(3, "ls", "-A", "/run").split()
    trio.crash(3)
    assert trio.run(1, "cat", "/cluster/node3/run/a/b/c") == "1\n"
    trio.add(3)
    assert set(trio.run(3, "ls", "-A", "/run").split()) <= set(before) - {"a", ".d"}

    def tidied() -> bool:
        return trio.run(1, "ls", "-A", "/cluster/node3").split() == ["dev", "etc", "run", "var"]

    wait_until(tidied, "what it had is removed")
    former = trio.run(3, "cat", "/var/log/cluster/corosync.log.1")
    assert "node3" in former


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_cluster_stops_in_order(ssi: Ssi, nodes: int) -> None:
    with started(ssi, nodes) as cluster:
        # What lies in /run is in use, and the logs are written to, while it ends.
        cluster.run(1, "sh", "-c", "cd /run/lock; sleep 1000 >/run/held & cd /cluster/node1")
        stopped = ssi.json("stop", str(cluster.number))
        assert stopped["killed"] == []
        log = (cluster.logs / "node1.console").read_text(errors="replace")
        assert "left" not in log or "killed" not in log
        ssi("start", str(nodes), "-c", str(cluster.number), *ssi.images.options)
        assert "held" not in cluster.run(1, "ls", "/run").split()
