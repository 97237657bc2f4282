"""Who keeps the memory of processes that have left: a process of which people see nothing.

native/criu/kept.h makes one. It ends when all has been brought, or nobody is left to serve it.
"""

from __future__ import annotations

from pathlib import Path

from ssi.node.migration.holder import Holder
from ssi.node.process.places import Places
from ssi.node.tasks import Tasks

FOLDER = Path("/run/ssi/kept")


class Kept:
    """All of this node."""

    def __init__(self, places: Places) -> None:
        self._hidden = places.kept
        self._tasks = Tasks()

    def add(self, pid: int) -> None:
        """Have one be hidden as long as it is there."""
        holder = Holder(pid)
        (FOLDER / str(pid)).write_text(f"{holder.begun}\n")
        self._watch(holder)

    def _watch(self, holder: Holder) -> None:
        self._hidden.add(holder.pid)
        self._tasks.spawn(self._await_end(holder))

    async def _await_end(self, holder: Holder) -> None:
        await holder.ended.wait()
        (FOLDER / str(holder.pid)).unlink(missing_ok=True)
        self._hidden.discard(holder.pid)

    def take_over(self) -> None:
        """Find those of daemons before this one."""
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        for path in FOLDER.iterdir():
            self._watch(Holder.find(int(path.name), int(path.read_text() or 0)))
