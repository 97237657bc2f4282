"""migrate: what it asks for, and what it says of who stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ssi.node.applets.migrate import Migrate
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.members import Kind
from support.local import Serving, serving

GROUP, EMPTY, KEPT, GONE = 40000, 50000, 40002, 40003
MEMBERS = {
    (Kind.GROUP, GROUP): (GROUP, 40001, KEPT, GONE, os.getpid()),
    (Kind.SESSION, GROUP): (GROUP, 40001),
}  # fmt: skip


class Nodes:
    """Stands for all that moves processes."""

    def __init__(self) -> None:
        self.moved: list[tuple[int, int]] = []
        self.whole: list[bool] = []

    async def move(self, pid: int, target: int, _caller: object, *, whole: bool) -> None:
        """Move a process, unless it is one of those."""
        if pid in (KEPT, EMPTY):
            raise CannotMove(f"{pid}: it is kept", number=errno.EBUSY)
        if pid == GONE:
            raise CannotMove(f"there is no process {pid}", number=errno.ESRCH)
        self.moved.append((pid, target))
        self.whole.append(whole)

    async def ask(self, pid: int, _caller: object) -> list[str]:
        """Return what keeps it."""
        return ["it is kept", "twice"] if pid == KEPT else []

    async def find(self, kind: Kind, number: int) -> Sequence[int]:
        """Return who is in a group or session."""
        return MEMBERS.get((kind, number), ())


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def running(tmp_path: Path, nodes: Nodes) -> Iterator[Serving]:
    parts = cast("Any", nodes)
    with serving(tmp_path) as found:
        Migrate(parts, parts, parts).register(found.server)
        yield found


def test_processes(running: Serving, nodes: Nodes) -> None:
    said = running.ask("migrate", "2", "40001", str(KEPT), "40005")
    assert said == (1, "", f"migrate: {KEPT}: it is kept\n")
    assert nodes.moved == [(40001, 2), (40005, 2)]
    assert running.ask("migrate", "2", str(GONE))[0] == 1


def test_a_group(running: Serving, nodes: Nodes) -> None:
    # But for who asks, and who has just ended.
    said = running.ask("migrate", "-g", "2", str(GROUP))
    assert said == (1, "", f"migrate: {KEPT}: it is kept\n")
    assert nodes.moved == [(GROUP, 2), (40001, 2)]


def test_with_all_its_memory(running: Serving, nodes: Nodes) -> None:
    assert running.ask("migrate", "-w", "2", "40001") == (0, "", "")
    assert running.ask("migrate", "2", "40001") == (0, "", "")
    assert nodes.whole == [True, False]


def test_a_session(running: Serving, nodes: Nodes) -> None:
    assert running.ask("migrate", "--session", "3", str(GROUP)) == (0, "", "")
    assert nodes.moved == [(GROUP, 3), (40001, 3)]


def test_nobody(running: Serving) -> None:
    said = running.ask("migrate", "-g", "2", str(EMPTY))
    assert said == (1, "", f"migrate: there is no process group {EMPTY}\n")


def test_what_keeps_a_group(running: Serving, nodes: Nodes) -> None:
    status, out, error = running.ask("migrate", "--check", "-g", str(GROUP))
    assert (status, error, nodes.moved) == (1, "", [])
    assert out.splitlines() == [
        f"{GROUP} can move", "40001 can move", f"{KEPT}: it is kept", f"{KEPT}: twice",
        f"{GONE} can move",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "",
        "2",
        "-g 2",
        "-g -s 2 40000",
        "2 x",
        "0 40000",
        "128 40000",
        "2 0",
        "-g 2 ²",
        "-x 2 40000",
    ],
)
def test_wrong_words(running: Serving, nodes: Nodes, words: str) -> None:
    status, out, error = running.ask("migrate", *words.split())
    assert (status, out, nodes.moved) == (2, "", [])
    assert error.startswith("migrate: ")


def test_for_libraries(running: Serving) -> None:
    said = running.ask("api-members", "session", str(GROUP))
    assert said == (0, f"pid {GROUP}\n\npid 40001\n\n", "")
    assert running.ask("api-members", "group", str(EMPTY)) == (0, "", "")
    for words in (["group"], ["what", "40000"], ["group", "x"]):
        assert running.ask("api-members", *words)[0] == 2
