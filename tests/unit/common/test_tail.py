"""Files that grow, are truncated and are begun anew while they are read."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from ssi.common import rotating
from ssi.common.rotating import older
from ssi.common.tail import MAX_LINE, Tail
from ssi.common.watch import Watch


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.log"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_reads_what_comes(path: Path) -> None:
    tail = Tail(path)
    assert tail.read_lines() == []
    append(path, "one\ntwo\nthr")
    assert tail.read_lines() == ["one", "two"]
    append(path, "ee\n")
    assert tail.read_lines() == ["three"]
    assert tail.size() == path.stat().st_size
    tail.close()


def test_begins_at_the_end(path: Path) -> None:
    append(path, "one\n")
    tail = Tail(path, at_end=True)
    append(path, "two\n")
    assert tail.read_lines() == ["two"]
    tail.close()


def test_follows_a_truncated_file(path: Path) -> None:
    append(path, "one\ntwo\nth")
    tail = Tail(path)
    tail.read_lines()
    os.truncate(path, 0)
    append(path, "four\n")
    assert tail.read_lines() == ["four"]
    tail.close()


def test_follows_a_file_begun_anew(path: Path) -> None:
    append(path, "one\n")
    tail = Tail(path)
    tail.read_lines()
    append(path, "two\n")
    path.rename(older(path))
    assert tail.read_lines() == ["two"]
    append(older(path), "three\n")
    append(path, "four\n")
    assert tail.read_lines() == ["three", "four"]
    tail.close()


def test_a_line_without_end_and_bytes_that_are_no_text(path: Path) -> None:
    tail = Tail(path)
    path.write_bytes(b"\xff\n" + b"x" * (MAX_LINE + 1))
    assert tail.read_lines() == ["\\xff", "x" * (MAX_LINE + 1)]
    tail.close()


def test_a_log_stays_small(path: Path) -> None:
    tail = Tail(path)
    read = []
    for number in range(50):
        rotating.append(path, f"line {number:3}\n", 100)
        read += tail.read_lines()
    assert read == [f"line {number:3}" for number in range(50)]
    assert path.stat().st_size <= 100
    assert 0 < older(path).stat().st_size <= 100
    rotating.append(path, "x" * 200, 100)  # longer than it may ever be: kept, alone
    assert path.stat().st_size == 200
    tail.close()


def test_a_watch_tells_of_changes(path: Path) -> None:
    path.touch()
    watches = [Watch([path]), Watch([path.parent])]
    for watch in watches:
        watch.clear()  # the folder's tells of the file, too
        assert not select.select([watch], [], [], 0)[0]
        append(path, "x")
        assert select.select([watch], [], [], 5)[0]
        watch.clear()
        assert not select.select([watch], [], [], 0)[0]
    (path.parent / "y").touch()
    assert select.select([watches[1]], [], [], 5)[0]
    for watch in watches:
        watch.close()
    with pytest.raises(FileNotFoundError):
        Watch([path.parent / "nothing"])
