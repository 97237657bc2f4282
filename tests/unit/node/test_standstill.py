"""A daemon that stands still says where."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ssi.node.standstill import watch

WITHIN_S = 0.2


def stand_still(for_s: float) -> None:
    """Not turn the loop."""
    time.sleep(for_s)


def test_it_says_what_it_does(tmp_path: Path) -> None:
    said = tmp_path / "console"
    said.touch()

    async def run(still_s: float) -> None:
        watching = asyncio.ensure_future(watch(str(said), WITHIN_S))
        await asyncio.sleep(WITHIN_S / 10)
        stand_still(still_s)
        watching.cancel()

    asyncio.run(run(0))
    assert not said.read_text()
    asyncio.run(run(4 * WITHIN_S))
    assert "in stand_still" in said.read_text()
