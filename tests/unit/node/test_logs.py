"""A node's log on its way: to its file, to the host, to the root; and what is left out."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssi.common.logline import LogLine, parse_line
from ssi.common.tail import Tail
from ssi.node import daemonlogs, hostlog, rootlog
from ssi.node.hostlog import BEHIND, BURST, RATE, Allowance, HostLog
from ssi.node.logs import EARLY, NodeLog, set_view
from ssi.node.rootlog import KEPT, RootLog
from ssi.node.waiting import wait_until

SEEN_US = 1_795_247_400_000_000  # 2026-11-21 07:50:00


@pytest.fixture
def log(tmp_path: Path) -> Iterator[NodeLog]:
    log = NodeLog(5, tmp_path / "ssid.log")
    root = logging.getLogger()
    root.addHandler(log)
    yield log
    root.removeHandler(log)


@pytest.mark.usefixtures("log")
def test_carries_node_and_view(tmp_path: Path) -> None:
    logging.getLogger("x").warning("one")
    set_view(7)
    logging.getLogger("x").warning("two %s", "\n2b")
    texts = [parse_line(text) for text in (tmp_path / "ssid.log").read_text().splitlines()]
    found = [(line.node, line.view, line.source, line.text) for line in texts if line]
    assert found == [
        (5, 0, "ssid", "WARNING x: one"), (5, 7, "ssid", "WARNING x: two "), (5, 7, "ssid", "2b"),
    ]  # fmt: skip


def test_early_lines_are_handed_on_first_and_threads_do_not_matter(log: NodeLog) -> None:
    logger = logging.getLogger("x")
    for number in range(EARLY + 5):
        logger.warning("%d", number)
    got: list[str] = []

    async def run() -> None:
        log.open([lambda line: got.append(line.text)])
        logger.warning("now")
        await asyncio.to_thread(logger.warning, "from a thread")
        log.say(0, "corosync", "hello")
        await asyncio.sleep(0)

    asyncio.run(run())
    assert got[:2] == ["WARNING x: 5", "WARNING x: 6"]
    assert sorted(got[-3:]) == ["WARNING x: from a thread", "WARNING x: now", "hello"]


def test_allowance() -> None:
    allowance = Allowance(0.0)
    assert allowance.take(BURST, 0.0)
    assert not allowance.take(1, 0.0)
    assert allowance.take(RATE, 1.0)
    assert not allowance.take(BURST + 1, 10**6)
    assert allowance.take(BURST, 10**6)


class FakeHost:
    """A line to the host."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.behind = 0

    def say(self, kind: str, **fields: object) -> None:
        self.said.append({"is": kind, **fields})

    def waiting(self) -> int:
        return self.behind


def line(source: str = "corosync", text: str = "x") -> LogLine:
    return LogLine(1, 5, 2, source, text)


def test_too_much_for_the_host_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostlog, "AGAIN_S", 0.01)
    host = FakeHost()

    async def run() -> None:
        to_host = HostLog(host)  # type: ignore[arg-type]
        for _ in range(100):
            to_host(line(text="x" * 900))
        sent = len(host.said)
        assert sent == BURST // 1000
        to_host(line("ssid", "another source"))
        assert host.said[-1]["source"] == "ssid"
        note = f"{100 - sent} lines left out here"
        assert await wait_until(lambda: host.said[-1]["text"] == note, within_s=10)
        to_host(line(text="y"))
        assert host.said[-1] == {
            "is": "log", "time": 1, "view": 2, "source": "corosync", "text": "y",
        }  # fmt: skip
        host.behind = BEHIND + 1
        to_host(line("ssid", "more"))
        assert host.said[-1]["text"] == "y"

    asyncio.run(run())


def test_a_pipe_that_is_full_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootlog, "userland_argv", lambda _: ["sleep", "60"])

    async def run() -> None:
        log = RootLog()
        log(line(text="early"))
        running = asyncio.create_task(log.run())
        assert await wait_until(lambda: log._pipe >= 0 and not log._waiting, within_s=10)
        for _ in range(1000):
            log(line(text="z" * 900))
        assert log._left_out > 0
        assert len(log._waiting) == KEPT
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert log._pipe < 0
        log(line())

    asyncio.run(run())


def test_what_the_root_gets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = rootlog.WRITER.replace("/var/log/cluster", str(tmp_path))
    monkeypatch.setattr(rootlog, "WRITER", script)
    monkeypatch.setattr(rootlog, "LIMIT", 1000)
    monkeypatch.setattr(rootlog, "AGAIN_S", 0.01)
    monkeypatch.setattr(rootlog, "userland_argv", lambda argv: argv)
    (tmp_path / "corosync.log").write_text("former life\n")

    async def wait_for(name: str, text: str) -> None:
        path = tmp_path / name
        assert await wait_until(lambda: path.exists() and text in path.read_text(), within_s=10)

    async def run() -> None:
        log = RootLog()
        log(line("ssid", "early"))
        running = asyncio.create_task(log.run())
        log(line(text='a "b" \\n c'))
        await wait_for("corosync.log", 'corosync: a "b" \\n c\n')
        await wait_for("ssid.log", "early")
        assert (tmp_path / "corosync.log.1").read_text() == "former life\n"
        for _ in range(2):
            log(line("ssid", "w" * 900))
        await wait_for("ssid.log.1", "wwww")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.parametrize(("text", "time_us", "said"), [
    ("Nov 21 07:49:59.750 [42] node2 corosync notice  [MAIN  ] ready", SEEN_US - 250_000,
     "notice  [MAIN  ] ready"),
    ("Nov  1 07:50:00.000 [42] node2 corosync x", SEEN_US - 20 * 86400 * 10**6, "x"),
    ("Dec 31 23:59:59.999 [42] node2 corosync x", SEEN_US, "x"),
    ("Nov 31 07:49:59.750 [42] node2 corosync x", SEEN_US,
     "Nov 31 07:49:59.750 [42] node2 corosync x"),
    ("Foo 21 07:49:59.750 [42] node2 corosync x", SEEN_US,
     "Foo 21 07:49:59.750 [42] node2 corosync x"),
    ("", SEEN_US, ""),
])  # fmt: skip
def test_when_corosync_said_it(text: str, time_us: int, said: str) -> None:
    assert daemonlogs.read_line("corosync", text, SEEN_US) == (time_us, said)


def test_what_the_others_say() -> None:
    read = daemonlogs.read_line
    dlm = "Nov 21 07:33:10 0 dlm_controld 4.3.0 started"
    assert read("dlm_controld", dlm, 9) == (9, "dlm_controld 4.3.0 started")
    assert read("dlm_controld", "oh", 9) == (9, "oh")
    assert read("daemons", dlm, 9) == (9, dlm)


def test_daemons_logs_are_followed_and_kept_small(
    log: NodeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "daemon/daemon.log"
    monkeypatch.setattr(daemonlogs, "FILES", {"daemons": path})
    monkeypatch.setattr(daemonlogs, "PAUSE_S", 0.01)
    got: list[str] = []

    async def run() -> None:
        log.open([lambda line: got.append(line.text)])
        following = asyncio.create_task(daemonlogs.follow(log, at_end=False))
        assert await wait_until(path.exists, within_s=10)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for number in range(1000):
            os.write(fd, f"{number:04}\x07{'y' * 2000}\n".encode())
            await asyncio.sleep(0)
        assert await wait_until(lambda: len(got) == 1000, within_s=10)
        os.write(fd, b"last\n")
        assert await wait_until(lambda: got[-1] == "last", within_s=10)
        following.cancel()
        os.close(fd)

    asyncio.run(run())
    assert [text[:8] for text in got[:1000]] == [f"{number:04}\\x07" for number in range(1000)]
    assert path.stat().st_size <= daemonlogs.LIMIT
    assert path.with_name("daemon.log.1").exists()


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("abc\n")
    tail = Tail(path)
    tail.read_lines()
    daemonlogs.limit_size(path, tail, 4)
    assert path.read_text() == "abc\n"
    daemonlogs.limit_size(path, tail, 3)
    assert path.read_text() == ""
    assert path.with_name("x.1").read_text() == "abc\n"
    tail.close()
