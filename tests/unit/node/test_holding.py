"""Of who is held its parent does not hear."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess

import pytest

from ssi.node.migration.holding import holding
from ssi.node.waiting import wait_until
from support.parents import line_of, parent, state_of

WITHIN_S = 30.0
NOTHING_S = 0.2


async def kill_held(pid: int, number: int, process: subprocess.Popen[str]) -> None:
    """Send a held process a signal: nobody is told of what comes of it."""
    async with holding([pid]):
        assert state_of(pid) == "t"
        os.kill(pid, number)
        if number == signal.SIGKILL:
            await wait_until(lambda: state_of(pid) == "Z", within_s=WITHIN_S)
        assert process.stdout
        assert not select.select([process.stdout], [], [], NOTHING_S)[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_its_parent_hears_afterwards(number: int) -> None:
    with parent() as (pid, process):
        asyncio.run(asyncio.wait_for(kill_held(pid, number, process), WITHIN_S))
        assert line_of(process.stdout) == "heard"
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        assert line_of(process.stdout) == f"{number:d}"


def test_who_is_not_there_is_not_held() -> None:
    process = subprocess.Popen(["true"])
    process.wait()

    async def hold() -> None:
        async with holding([process.pid]):
            pass

    asyncio.run(asyncio.wait_for(hold(), WITHIN_S))
