"""The demo of process movement of 2002, typed at a real console: records go on wherever it runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssi.host.paths import IMAGE
from support.clusters import Cluster, Ssi, started
from support.terminal import PASSWORD, Terminal, attached

PROMPT = r"root@node1:[^ ]*# "
ALPHABET = (IMAGE / "rootfs/tree/root/dbdemo/alphabet").read_text().split()
LINE = re.compile(r"node (\d+): (\S+)\r\n")


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes; the password has been changed."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "chpasswd", given=f"root:{PASSWORD}\n".encode())
        yield cluster


@pytest.fixture(scope="module")
def shells(trio: Cluster) -> Iterator[tuple[Terminal, Terminal]]:
    """Root's shells at the consoles of nodes 1 and 3."""
    with attached(trio, 1) as one, attached(trio, 3) as three:
        one.log_in()
        three.log_in()
        one.run("cd ~/dbdemo")
        yield one, three


class Demo:
    """dbdemo, running at a terminal."""

    def __init__(self, terminal: Terminal, command: str) -> None:
        self._terminal = terminal
        self.shown: list[tuple[int, str]] = []
        """Nodes and records."""
        terminal.type(f"{command} alphabet\r")

    def see(self, node: int | None = None) -> int:
        """Wait for records until one was processed on `node`, of any for the next; return where."""
        for _ in range(12):
            self._terminal.expect(LINE.pattern)
            self._note()
            if node in {None, self.shown[-1][0]}:
                return self.shown[-1][0]
        raise AssertionError(f"not on node{node}: {self.shown}")

    def _note(self) -> None:
        found = LINE.fullmatch(self._terminal.found)
        assert found
        self.shown.append((int(found[1]), found[2]))

    def hear(self, message: str) -> None:
        """Wait for a message; there may be records before it."""
        while self._terminal.expect(LINE.pattern, message) == 0:
            self._note()

    def press(self, key: str) -> None:
        """Press a key."""
        self._terminal.type(key)

    def check(self) -> None:
        """Every record was shown, once and in order; after the last comes the first."""
        records = [record for _, record in self.shown]
        assert records == [ALPHABET[i % len(ALPHABET)] for i in range(len(records))]


@pytest.mark.parametrize("command", ["./dbdemo", "./dbdemo.py"])
def test_the_demo_of_2002(shells: tuple[Terminal, Terminal], command: str) -> None:
    one, three = shells
    demo = Demo(one, command)
    demo.see(1)
    for node in (2, 3, 1, 2):
        demo.press(str(node))
        demo.see(node)
        demo.see(node)
    lines = three.run("ps -ef | grep dbdemo").splitlines()
    pid = next(line.split()[1] for line in lines if f"{command} alphabet" in line)
    assert three.run(f"where_pid {pid}") == "2\n"
    assert three.run(f"cat /proc/{pid}/where") == "2\n"
    # A node that is not there: it stays, and says so.
    demo.press("9")
    demo.hear("cannot move to node 9: Host is down\r\n")
    demo.press("\r")
    assert len({demo.see() for _ in range(8)}) > 1
    demo.press("x")
    # The key is seen with the next record, which may be the last before a move.
    demo.see()
    demo.see()
    assert len({demo.see() for _ in range(4)}) == 1
    demo.press("q")
    demo.hear(PROMPT)
    demo.check()
    assert one.run("echo $?; jobs") == "0\n"
    assert " icanon" in one.run("stty -a")
    assert three.run(f"where_pid {pid}").startswith("where_pid: there is no")


def test_the_source_is_there(trio: Cluster) -> None:
    source = Path(IMAGE.parent / "native/dbdemo/dbdemo.c").read_text()
    assert trio.run(2, "cat", "/root/dbdemo/dbdemo.c") == source
    assert trio.run(2, "stat", "-c", "%a %U", "/root", "/root/dbdemo") == "700 root\n755 root\n"
