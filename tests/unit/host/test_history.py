"""The logs of a cluster: kept from what nodes say, and read as one."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssi.cli.logs import parse_since
from ssi.common.errors import ProtocolError, SsiError, UsageError
from ssi.common.logline import LogLine, now_us, parse_line
from ssi.host.cluster import nodelogs
from ssi.host.cluster.history import History, choose_logs
from ssi.host.cluster.nodelogs import NodeLogs
from ssi.host.cluster.spec import ClusterPlace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterPlace:
    monkeypatch.setattr("ssi.host.cluster.spec.runtime_dir", lambda: tmp_path / "run")
    monkeypatch.setattr("ssi.host.cluster.spec.state_dir", lambda: tmp_path / "state")
    place = ClusterPlace(10001)
    place.logs.mkdir(parents=True)
    return place


def hear(logs: NodeLogs, node: int, **fields: object) -> None:
    member: Any = SimpleNamespace(number=node)
    message = {"is": "log", "time": 1000, "view": 2, "source": "ssid", "text": "x"}
    logs.hear(member, {**message, **fields})


def write(place: ClusterPlace, node: int, *lines: str | tuple[int, str]) -> None:
    path = place.node_log(node) if node else place.supervisor_log
    with path.open("a") as file:
        for line in lines:
            file.write(
                line if isinstance(line, str) else str(LogLine(line[0], node, 1, "x", line[1]))
            )
            file.write("\n")


def read(place: ClusterPlace, *nodes: int) -> list[LogLine]:
    with contextlib.closing(History(place, nodes)) as history:
        return history.read_all()


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_what_a_node_says_is_kept(place: ClusterPlace) -> None:
    logs = NodeLogs(place)
    hear(logs, 3, text="one\ntwo\x1b")
    hear(logs, 3, time=2**59)
    lines = [parse_line(text) for text in place.node_log(3).read_text().splitlines()]
    assert lines[:2] == [
        LogLine(1000, 3, 2, "ssid", "one"),
        LogLine(1000, 3, 2, "ssid", "two\\x1b"),
    ]
    assert lines[2]
    assert lines[2].time_us <= now_us()


@pytest.mark.parametrize("wrong", [
    {"time": -1}, {"time": 1.5}, {"time": 2**61}, {"view": "1"}, {"view": -1}, {"view": 10**15},
    {"source": ""}, {"source": "A"}, {"source": "a b"}, {"source": "x" * 17}, {"source": "é"},
    {"text": None}, {"text": 1},
])  # fmt: skip
def test_what_is_no_log_is_refused(place: ClusterPlace, wrong: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        hear(NodeLogs(place), 3, **wrong)
    assert not place.node_log(3).exists()


def test_a_folder_that_is_gone_does_no_harm(place: ClusterPlace) -> None:
    place.logs.rmdir()
    hear(NodeLogs(place), 3)


def test_logs_have_a_limit(place: ClusterPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodelogs, "LIMIT", 1000)
    logs = NodeLogs(place)
    for number in range(100):
        hear(logs, 3, time=number, text=f"{number}")
    assert place.node_log(3).stat().st_size <= 1000
    found = texts(read(place, 3))
    assert found == [str(number) for number in range(100 - len(found), 100)]
    assert len(found) > 15


def test_all_logs_are_one(place: ClusterPlace) -> None:
    write(place, 1, (10, "a"), (30, "c"))
    write(place, 2, (20, "b"), (30, "d"))
    write(place, 0, (5, "begin"), "Traceback", (40, "end"))
    (place.logs / "node1.console").write_text("no")
    assert texts(read(place)) == ["begin", "Traceback", "a", "b", "c", "d", "end"]
    assert texts(read(place, 2)) == ["b", "d"]
    assert read(place, 7) == []


def test_malformed_lines_stay_with_the_one_before(place: ClusterPlace) -> None:
    write(place, 1, "\x1b[2J first", (10, "a"), "\xff\xfe b", str(LogLine(99, 2, 1, "x", "forged")))
    place.node_log(2).write_bytes(b"\xff\n\x00\n\n")
    lines = read(place)
    assert [line.time_us for line in lines] == [0, 0, 0, 0, 10, 10, 10]
    assert lines[0].text == "\\x1b[2J first"
    assert {line.node for line in lines[4:]} == {1}
    assert lines[-1].text.endswith("forged")


def test_follows_until_the_logs_are_gone(place: ClusterPlace) -> None:
    write(place, 1, (10, "a"))
    history = History(place, ())
    assert texts(history.read_all()) == ["a"]
    read_end, write_end = os.pipe()
    got: list[str] = []
    more = threading.Event()

    def follow() -> None:
        for lines in history.follow(write_end):
            got.extend(texts(lines))
            more.set()

    following = threading.Thread(target=follow)
    following.start()

    def wait_for(count: int) -> None:
        for _ in range(100):
            if len(got) >= count:
                return
            more.wait(0.1)
            more.clear()

    write(place, 2, (20, "b"))
    write(place, 1, (15, "a2"))
    wait_for(2)
    for path in place.logs.iterdir():
        path.unlink()
    place.logs.rmdir()
    following.join(timeout=10)
    assert not following.is_alive()
    history.close()
    assert sorted(got) == ["a2", "b"]
    for fd in (read_end, write_end):
        os.close(fd)


def test_stops_when_nobody_reads(place: ClusterPlace) -> None:
    read_end, write_end = os.pipe()
    following = History(place, ()).follow(write_end)
    assert next(following) == []
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        next(following)
    os.close(write_end)


def test_which_cluster_is_meant(place: ClusterPlace) -> None:
    assert choose_logs(None) == place
    with pytest.raises(SsiError):
        choose_logs(10002)
    other = ClusterPlace(10002)
    other.logs.mkdir(parents=True)
    with pytest.raises(UsageError):
        choose_logs(None)
    other.runtime.mkdir(parents=True)
    assert choose_logs(None) == other
    assert choose_logs(10001) == place


@pytest.mark.parametrize(("text", "time_s"), [
    ("90s", 910), ("10m", 400), ("0d", 1000), ("1970-01-01T00:01", 60),
    ("1970-01-01T00:00:01.5Z", 1.5), ("1970-01-01 01:00+01:00", 0), ("1970-01-02", 86400),
])  # fmt: skip
def test_since(text: str, time_s: float) -> None:
    assert parse_since(text, 1000.0) == time_s * 1_000_000


@pytest.mark.parametrize("text", ["", "x", "10", "-1s", "1y", "2026-13-01", "10:00", "\u0661s"])
def test_since_no_time(text: str) -> None:
    with pytest.raises(UsageError):
        parse_since(text, 1000.0)
