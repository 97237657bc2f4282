"""What becomes of a process that CRIU has held, and waiting for it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssi.node.migration import holder
from ssi.node.migration.holder import Fate, Holder, find_fate, spent, wait_first
from ssi.node.processes import start_of

DEADLINE_S = 20.0


def play(coroutine: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await coroutine

    asyncio.run(run())


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_a_process_that_runs(sleeper: subprocess.Popen[bytes]) -> None:
    begun = start_of(sleeper.pid)
    assert find_fate(sleeper.pid, begun) == Fate.RUNS
    assert find_fate(sleeper.pid, begun + 1) == Fate.GONE, "its PID is another's"


def test_one_that_has_become_a_ghost(tmp_path: Path) -> None:
    ghost = tmp_path / "usr/bin/onnode"
    ghost.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", ghost)
    with subprocess.Popen([ghost, "1000"]) as process:
        assert find_fate(process.pid, start_of(process.pid)) == Fate.GHOST
        process.kill()


def test_a_zombie_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    begun = start_of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert find_fate(sleeper.pid, begun) == Fate.GONE
    sleeper.wait()
    assert find_fate(sleeper.pid, begun) == Fate.GONE


def test_its_end_is_heard(sleeper: subprocess.Popen[bytes]) -> None:
    async def run() -> None:
        before = set(os.listdir("/proc/self/fd"))
        one = Holder(sleeper.pid)
        assert one.begun == start_of(sleeper.pid)
        assert not one.ended.is_set()
        assert Holder.find(sleeper.pid, one.begun + 1).ended.is_set()
        one.kill()
        await one.wait_end()
        assert sleeper.wait() == -signal.SIGKILL
        one.kill()
        assert set(os.listdir("/proc/self/fd")) == before

    play(run())


def test_who_makes_no_progress_is_killed(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "STILL_S", 0.01)

    async def run() -> None:
        await Holder(sleeper.pid).wait_end()
        assert sleeper.wait() == -signal.SIGKILL

    play(run())


def test_who_makes_progress_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "STILL_S", 0.01)

    async def run() -> None:
        event, looks = asyncio.Event(), iter(range(20))

        def work() -> int:
            look = next(looks)
            if look == 19:
                event.set()
            return look

        assert await wait_first([event.wait()], work)
        assert not await wait_first([asyncio.Event().wait()], lambda: 1)

    play(run())


def test_what_a_process_has_used() -> None:
    script = "print(sum(range(30000000)), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert spent(process.pid) > 0
        process.communicate(b"\n")
    assert spent(process.pid, 0) == 0
