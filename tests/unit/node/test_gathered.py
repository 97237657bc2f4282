"""What many nodes write, made fit to read."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import UsageError
from ssi.node.applets import gathered
from ssi.node.applets.gathered import Folded, Json, Lines, Live, Outcome, Reader, fold
from ssi.node.applets.onall import make_command
from ssi.node.local import Output


class Paper(Output):
    """An output that is read by the test."""

    def __init__(self) -> None:
        self.out = ""
        self.err = ""

    async def write(self, data: str | bytes) -> None:
        self.out += data if isinstance(data, str) else data.decode()

    async def error(self, data: str | bytes) -> None:
        self.err += data if isinstance(data, str) else data.decode()


def show(
    reader: Reader, *pieces: tuple[int, str, bytes], ends: dict[int, Outcome] | None = None
) -> None:
    async def run() -> None:
        for node, name, data in pieces:
            await reader.take(node, name, data)
        await reader.end(ends or {})

    asyncio.run(run())


@given(st.lists(st.binary(max_size=40) | st.just(b"\n")))
def test_lines_are_what_was_written(pieces: list[bytes]) -> None:
    lines = Lines()
    found = [line for piece in pieces for line in lines.feed(piece)] + lines.end()
    text = b"".join(pieces)
    assert b"".join(found) == text + (b"" if text.endswith(b"\n") or not text else b"\n")
    assert all(line.count(b"\n") == 1 for line in found)


def test_long_lines_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "LONGEST_LINE", 10)
    lines = Lines()
    assert lines.feed(b"123456789") == []
    assert lines.feed(b"0") == [b"1234567890\n"]
    assert lines.end() == []


@given(st.dictionaries(st.integers(1, 9), st.sampled_from([b"", b"a", b"a\n", b"b\n"])))
def test_folding_loses_nobody(texts: dict[int, bytes]) -> None:
    folded = fold(texts)
    assert all(text.endswith(b"\n") for _, text in folded)
    assert len({text for _, text in folded}) >= len(folded) - 1  # "a" and "a\n" look alike
    assert bool(folded) == any(texts.values())


def test_alike_is_shown_once() -> None:
    assert fold({3: b"x\n", 1: b"x\n", 2: b"y", 4: b""}) == [
        ("node1,3", b"x\n"), ("node2", b"y\n"),
    ]  # fmt: skip


def test_folded() -> None:
    paper = Paper()
    ends = {1: Outcome(0), 2: Outcome(3), 3: Outcome(3), 4: Outcome(255, "node4 was lost")}
    show(
        Folded(paper), (1, "stdout", b"a"), (2, "stderr", b"warn"), (2, "stdout", b"ab"),
        (1, "stdout", b"b"), (2, "stderr", b"ing\nrest"), ends=ends,
    )  # fmt: skip
    assert paper.out == "node1-2:\nab\n"
    assert paper.err == (
        "node2: warning\nnode2: rest\nonall: node4 was lost\nonall: node2-3: exit status 3\n"
    )


def test_what_is_too_much_is_shown_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "NODE_MOST", 5)
    monkeypatch.setattr(gathered, "ALL_MOST", 8)
    paper = Paper()
    show(
        Folded(paper), (1, "stdout", b"1\n2\n3\n"), (2, "stdout", b"abcd"), (1, "stdout", b"4\n"),
        (3, "stdout", b"abcd"), (4, "stdout", b"e"),
    )  # fmt: skip
    assert paper.out == "node1: 1\nnode1: 2\nnode1: 3\nnode1: 4\nnode2-3:\nabcd\nnode4: e\n"
    assert paper.err.count("too much to fold") == 2


def test_live() -> None:
    paper = Paper()
    show(Live(paper), (1, "stdout", b"a\nb"), (2, "stdout", b"c\n"), (1, "stdout", b"\n"))
    assert paper.out == "node1: a\nnode2: c\nnode1: b\n"


def test_json_cuts_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "NODE_MOST", 5)
    paper = Paper()
    ends = {1: Outcome(0), 2: Outcome(255, "node2 was lost")}
    show(Json(paper), (1, "stdout", b"123456"), (1, "stderr", b"\xff"), ends=ends)
    assert json.loads(paper.out) == [
        {"node": 1, "status": 0, "error": None, "stdout": "12345", "stderr": "\ufffd",
         "truncated": True},
        {"node": 2, "status": 255, "error": "node2 was lost", "stdout": "", "stderr": "",
         "truncated": False},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["ls", "-l", "a b"], ["ls", "-l", "a b"]),
        (["uptime"], ["uptime"]),
        (["/bin/x.y-z_0"], ["/bin/x.y-z_0"]),
        (["--", "ls"], ["ls"]),
        (["ls -l"], ["/bin/sh", "-c", "ls -l"]),
        (["$X"], ["/bin/sh", "-c", "$X"]),
        (["true;false"], ["/bin/sh", "-c", "true;false"]),
    ],
)
def test_a_shell_is_for_what_only_it_understands(words: list[str], argv: list[str]) -> None:
    assert make_command(words) == argv


def test_no_command_is_a_mistake() -> None:
    with pytest.raises(UsageError):
        make_command(["--"])
