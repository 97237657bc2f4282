"""Processes move: what they were doing goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ssi.host.paths import TOP
from ssi.node.migration import criu
from support.clusters import Cluster, Ssi, started
from support.terminal import PASSWORD, Terminal, attached

PROMPT = r"root@node1:[^ ]*# "

# Says where it runs, then answers each line with its length and where it is by then.
ECHO = """\
import os, sys
print(os.getpid(), os.uname().nodename, flush=True)
for line in sys.stdin:
    print(len(line) - 1, os.uname().nodename, flush=True)
print("end", flush=True)
"""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes; the password has been changed."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        cluster.run(1, "sh", "-c", "cat >/root/echo.py", given=ECHO.encode())
        yield cluster


@pytest.fixture(scope="module")
def shell(trio: Cluster) -> Iterator[Terminal]:
    """A root shell at the console of node 1."""
    with attached(trio, 1) as terminal:
        terminal.log_in()
        yield terminal


def test_a_job_of_a_shell(trio: Cluster, shell: Terminal) -> None:
    shell.type("python3 /root/echo.py\r")
    shell.expect(r"\d+ node1\r\n")
    pid = shell.found.split()[0]
    shell.type("abc\r")
    shell.expect("3 node1\r\n")
    trio.run(3, "migrate", "2", pid)
    assert trio.run(3, "where_pid", pid) == "2\n"
    shell.type("abcd\r")
    shell.expect("4 node2\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect(PROMPT)
    shell.type("fg\r")
    shell.expect("echo.py\r\n")
    shell.type("abcde\r")
    shell.expect("5 node2\r\n")
    shell.type("\x04")
    shell.expect("end\r\n")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "0\n"


def test_on_and_home(trio: Cluster, shell: Terminal) -> None:
    shell.type("python3 /root/echo.py\r")
    shell.expect(r"\d+ node1\r\n")
    pid = shell.found.split()[0]
    for node in (2, 3, 1, 3, 2, 1) * 2:
        trio.run(3, "migrate", str(node), pid)
        assert trio.run(3, "where_pid", pid) == f"{node}\n"
        shell.type("x" * node + "\r")
        shell.expect(f"{node} node{node}\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect(PROMPT)
    shell.type("fg\r")
    shell.expect("echo.py\r\n")
    shell.type("\x03")
    shell.expect("KeyboardInterrupt")
    shell.expect(PROMPT)
    assert shell.run("echo $?") == "130\n"


@pytest.mark.parametrize("ways", [(2,), (2, 3), (2, 1), (2, 3, 1, 2)])
def test_what_comes_along(trio: Cluster, ways: tuple[int, ...]) -> None:
    program = (TOP / "tests/programs/belongings.py").read_text()
    with trio.start_python(1, program) as process:
        assert process.stdout
        pid, ready = process.stdout.readline().decode().split()
        assert ready == "ready"
        for node in ways:
            trio.run(3, "migrate", str(node), pid)
        trio.run(3, "kill", "-USR1", pid)
        said = process.stdout.read().decode().splitlines()
        assert [line for line in said if not line.endswith(" ok")] == [f"on node{ways[-1]}"]
        assert len(said) > 15


def test_there_and_home_at_once(trio: Cluster) -> None:
    """What was CRIU there is not reaped yet, and must not keep the number of a session's leader."""
    script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"
    pid = trio.run(1, "sh", "-c", script).strip()
    moves = " && ".join(f"migrate {node} {pid}" for node in (2, 1) * 4)
    assert trio.run(1, "sh", "-c", f"{moves} && where_pid {pid}") == "1\n"
    trio.run(2, "kill", pid)


def test_criu_is_loaded_without_what_it_does_not_use(trio: Cluster) -> None:
    listing = ("env", "LD_TRACE_LOADED_OBJECTS=1")
    words = [f"{name}={value}" for name, value in criu.environment("x").items()]
    assert "gnutls" in trio.run(1, *listing, criu.PROGRAM)
    loaded = trio.run(1, *listing, *words, criu.PROGRAM)
    assert "libprotobuf-c" in loaded
    assert not [name for name in ("gnutls", "nettle", "nftables", "libnet.") if name in loaded]


def test_who_may_get_no_privileges_does_not_come_home(trio: Cluster) -> None:
    script = "setsid setpriv --no-new-privs sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"
    pid = trio.run(1, "sh", "-c", script).strip()
    trio.run(3, "migrate", "2", pid)
    refused = trio.try_run(3, "migrate", "1", pid)
    assert refused.status == 1
    assert "privileges" in refused.err
    trio.run(1, "migrate", "3", pid)
    assert trio.run(2, "where_pid", pid) == "3\n"
    trio.run(2, "kill", pid)


# Has files open; tells what is in them when it is told to, and then is in another folder.
RENAMED = """\
import os, signal, sys
os.makedirs("/root/renamed/folder")
files = {name: open(f"/root/renamed/{name}", "a+") for name in sys.argv[1:]}
for name, file in files.items():
    print(name, "before", file=file, flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print(os.getpid(), flush=True)
while signal.sigwait([signal.SIGUSR1]):
    for name, file in files.items():
        print("on", os.uname().nodename, file=file, flush=True)
        file.seek(0)
        print(*file.read().split(), flush=True)
    os.chdir("/root/renamed/folder")
"""
ELSEWHERE = """\
cd /root/renamed && rm removed && mv renamed renamed.1 && echo new >other && mv other replaced
"""
A_FOLDER = "a folder that another node has renamed: /root/renamed/folder"


def test_what_it_has_open_is_removed_and_renamed_on_another_node(trio: Cluster) -> None:
    """A log may be rotated by any node."""
    names = ("removed", "renamed", "replaced", "kept")
    with trio.start_python(1, RENAMED, *names) as process:
        assert process.stdout
        pid = process.stdout.readline().decode().strip()
        trio.run(2, "sh", "-c", ELSEWHERE)
        assert trio.run(3, "migrate", "--check", pid) == f"{pid} can move\n"
        moved = []
        for node in (3, 2, 1):
            trio.run(3, "migrate", str(node), pid)
            moved.append(f"on node{node}")
            trio.run(3, "kill", "-USR1", pid)
            for name in names:
                said = process.stdout.readline().decode()
                assert said == f"{name} before {' '.join(moved)}\n"
        trio.run(2, "mv", "/root/renamed/folder", "/root/renamed/other")
        checked = trio.try_run(3, "migrate", "--check", pid)
        assert checked.out == f"{pid}: its working directory is {A_FOLDER}\n"
        trio.run(3, "kill", pid)
    assert "on node3 on node2 on node1" in " ".join(
        trio.run(2, "cat", "/root/renamed/renamed.1").split()
    )
    assert trio.run(2, "cat", "/root/renamed/replaced") == "new\n"
    assert trio.run(2, "ls", "-A", "/root/renamed").split() == [
        "kept", "other", "renamed.1", "replaced",
    ]  # fmt: skip
    trio.run(2, "rm", "-r", "/root/renamed")


LOOK = "while [ -e /root/looking ]; do /bin/true; ls -l /proc >/dev/null; ps -ef >/dev/null; done"


def test_everybody_looks_at_proc_meanwhile(trio: Cluster) -> None:
    """What has just ended or begun is told by the daemon that is asked, and so is who has moved."""
    trio.run(1, "touch", "/root/looking")
    script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"
    pid = trio.run(1, "sh", "-c", script).strip()
    call = f"import subprocess; subprocess.run({LOOK!r}, shell=True, check=True)"
    lookers = [trio.start_python(node, call) for node in (1, 1, 2, 2, 3)]
    for node in (2, 3, 1) * 3:
        trio.run(3, "migrate", str(node), pid)
        assert trio.run(2, "where_pid", pid) == f"{node}\n"
    trio.run(1, "rm", "/root/looking")
    for looker in lookers:
        assert looker.wait(60) == 0
    trio.run(2, "kill", pid)
