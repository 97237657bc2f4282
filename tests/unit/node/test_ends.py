"""How processes end, as others than their parents see it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

from ssi.node.process.ends import read_zombie, wait_reaped, wait_status
from support.parents import parent

WITHIN_S = 30.0


def test_one_of_which_its_parent_has_not_heard() -> None:
    with parent() as (pid, _):
        assert read_zombie(pid) is None
        os.kill(pid, signal.SIGTERM)
        assert asyncio.run(asyncio.wait_for(wait_status(pid), WITHIN_S)) == signal.SIGTERM
        assert read_zombie(pid) == signal.SIGTERM


def test_one_that_is_no_more() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert asyncio.run(wait_status(process.pid)) == 0
    asyncio.run(wait_reaped(process.pid))
