"""Where something stands for a process that comes: it becomes the process, or stays what it is.

That is its ghost at home, a remnant, a placeholder or a stand-in. Only a stand-in is lost if the
process cannot be restored.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node import faults
from ssi.node.launcher import STAYS
from ssi.node.migration import criu, rewrite
from ssi.node.migration.arrival import Arrival
from ssi.node.migration.barrier import Answer, Question, Verdict
from ssi.node.migration.holder import wait_first
from ssi.node.migration.holding import holding
from ssi.node.migration.locks import Locks
from ssi.node.migration.pagers import Pagers
from ssi.node.process.caller import read_caller
from ssi.node.process.device import get_descriptor
from ssi.node.process.ends import read_zombie
from ssi.node.process.family import list_children
from ssi.node.process.ghost import PROGRAM, Ghost, Kind, is_stopped
from ssi.node.process.places import Places
from ssi.node.process.users import MAX_FD
from ssi.node.relay.saved import pass_descriptors
from ssi.node.waiting import wait_readable

CHILD_SIGNAL = 1 << (signal.SIGCHLD - 1)
BACK_S = 3.0


class Standing:
    """All that stand on this node for processes that come."""

    def __init__(self, places: Places, pagers: Pagers, locks: Locks) -> None:
        self._places = places
        self._bodies = places.bodies
        self._ghosts = places.ghosts
        self._pagers = pagers
        self._locks = locks

    # -- a ghost, a remnant or a placeholder -----------------------------------------------------

    async def restore(self, arrival: Arrival, wishes: Message, ghost: Ghost) -> None:
        """Have it become the process, held, or be again what it is; raises CannotMove."""
        if ghost.kind == Kind.GHOST and ghost.id != arrival.ghost:
            raise criu.CannotMove(f"PID {arrival.pid} is another's on this node")
        arrival.in_place = True
        arrival.stood, arrival.stopped = ghost.again(), is_stopped(ghost.pid)
        pidfd = os.pidfd_open(ghost.pid)
        try:
            left = wire.get_ints(wishes, "left", 0, MAX_FD)
            ghost.users.move(arrival.source, self._places.node, left)
            # The descriptors of one that is held since this node was booted anew are lost.
            if not ghost.held:
                _duplicate(arrival, ghost, pidfd)
            async with _holding_children(arrival):
                arrival.give_up()
                if ghost.kind != Kind.GHOST:
                    tty, pinned = arrival.tty, arrival.pinned
                    arrival.body = self._bodies.expect_in_place(
                        arrival.ghost, arrival.home, tty, ghost.pid, pinned=pinned
                    )
                await self._ghosts.send_home(ghost, arrival.move)
                faults.hit("arrival-called", ghost.pid)
                await arrival.wait_ready(wait_readable(pidfd), self._locks)
        except (OSError, SsiError) as error:
            await self._await_back(arrival, pidfd)
            raise criu.CannotMove(f"it cannot come home: {error}") from error
        finally:
            os.close(pidfd)

    async def _await_back(self, arrival: Arrival, pidfd: int) -> None:
        """Have a process that is not restored be what has stood for it again, or end."""
        if arrival.criu_gone.is_set():
            # To the process that may be a failure like others.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACK_S):
                    await wait_first([arrival.failed.wait(), wait_readable(pidfd)])
        if arrival.back:
            came = self._ghosts.wait_back(arrival.back, stopped=arrival.stopped)
            await wait_first([came, wait_readable(pidfd)])
        elif arrival.given_up:
            # Its parent is to see that.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    async def hear(self, arrival: Arrival, question: Question, number: int) -> Answer:
        """Answer what is to become the process, or has not."""
        if question == Question.HOME and arrival.in_place:
            images = os.open(arrival.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            program = arrival.program
            return Answer(Verdict.GO_ON, images, program.argv, program.environment)
        if question == Question.BACK:
            return await self._give_back(arrival)
        if question == Question.KEPT and number in arrival.kept:
            return Answer(Verdict.GO_ON, os.dup(arrival.kept[number]))
        return Answer(Verdict.REFUSED)

    async def _give_back(self, arrival: Arrival) -> Answer:
        """Return how a process that is not restored is again what has stood for it."""
        ghost = arrival.stood
        if ghost is None or arrival.goes_on.done():
            return Answer(Verdict.REFUSED)
        self._pagers.kill(arrival.move)
        self._ghosts.take_back(ghost)
        if arrival.body:
            await self._bodies.give_back(arrival.body)
            arrival.body = None
        arrival.take_back(ghost)
        for file in arrival.files.values():
            if file.relay and file.is_of(ghost) and file.fd in arrival.kept:
                pass_descriptors(arrival.kept[file.fd], passes=False)
        argv = [Path(PROGRAM).name, str(ghost.node), "its-command"]
        kept = ",".join(map(str, sorted(arrival.kept)))
        return Answer(Verdict.GHOST, argv=argv, variables={"SSI_KEPT": f"{kept};"})

    # -- a stand-in ------------------------------------------------------------------------------

    async def restore_for_stand_in(self, arrival: Arrival) -> None:
        """Have one become the process, held, for the sake of those below; raises CannotMove."""
        place = await self._places.stand_ins.give_place(arrival.pid)
        if place is None:
            raise criu.CannotMove(f"others of its session are on node{self._places.node}")
        arrival.body = body = self._bodies.expect_for_stand_in(
            arrival.ghost, arrival.home, arrival.tty, place, pinned=arrival.pinned
        )
        arrival.in_place = True
        arrival.give_up()
        stand_in, _ = place
        program = dataclasses.replace(
            arrival.program, pid=0, session=False, group=STAYS, blocked=CHILD_SIGNAL
        )
        try:
            async with _holding_children(arrival):
                with criu.opened(arrival.folder) as (fds, numbers):
                    await stand_in.client.become(program, fds, numbers)
                await arrival.wait_ready(self._bodies.wait_end(body), self._locks)
        except (OSError, SsiError) as error:
            raise criu.CannotMove(f"it cannot be restored: {error}") from error


@contextlib.asynccontextmanager
async def _holding_children(arrival: Arrival) -> AsyncIterator[None]:
    """Hold those that it has here. It will hear of each that has ended, and was not waited for."""
    children = list_children(arrival.pid)
    async with holding(children):
        for child in children:
            if (status := read_zombie(child)) is not None:
                user = read_caller(child).uids[0]
                rewrite.add_child_signal(arrival.folder, child, user, status)
        yield


def _duplicate(arrival: Arrival, ghost: Ghost, pidfd: int) -> None:
    """Have the descriptors that the process, and others, use of a ghost's; raises OSError."""
    for fd in {one.fd for one in arrival.files.values() if one.is_of(ghost)}:
        arrival.kept[fd] = get_descriptor(pidfd, fd)
    for fd in set().union(*ghost.users.others.values()) - arrival.kept.keys():
        with contextlib.suppress(OSError):
            arrival.kept[fd] = get_descriptor(pidfd, fd)
