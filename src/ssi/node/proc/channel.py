"""The FUSE descriptor: requests are taken from it, each answered by a task of its own.

The launcher keeps the descriptor. Requests that come while this daemon is restarted wait for the
next one, and the kernel repeats those that were taken and not answered.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Sequence

from ssi.common.errors import ProtocolError
from ssi.node.proc import fuse
from ssi.node.proc.fuse import ERESTARTSYS, UNANSWERED, Op, Request

logger = logging.getLogger(__name__)

Answer = Callable[[Request], Awaitable[bytes]]
"""Returns the body of a reply, or raises OSError."""


class Channel:
    """A mounted file system's descriptor."""

    def __init__(self, fd: int, name: str = "/proc") -> None:
        """`fd` is ours from now on; `name` is for the log."""
        self._name = name
        os.set_blocking(fd, False)
        self._fd = fd
        self._answer: Answer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes: dict[int, asyncio.Task[None]] = {}
        """By their numbers."""
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The kernel may wait with a notice for a page or folder that a request holds: who answers
        # requests must not be who waits for that.
        self._notifier = concurrent.futures.ThreadPoolExecutor(1, "proc-notices")
        # Nor must the notices for which a request waits stand behind one that waits for a request:
        # an entry is only forgotten when nobody looks it up.
        self._forgetter = concurrent.futures.ThreadPoolExecutor(1, "proc-entries")

    async def run(self, answer: Answer) -> None:
        """Answer by `answer` until the file system is unmounted, or until cancelled."""
        self._answer = answer
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, self._take)
        try:
            await self._gone
        finally:
            loop.remove_reader(self._fd)
            for executor in (self._notifier, self._forgetter):
                executor.shutdown(wait=False, cancel_futures=True)
            os.close(self._fd)

    async def repeat(self) -> None:
        """Have the kernel repeat what an earlier daemon has taken and not answered."""
        await self.notify([fuse.pack_notice(fuse.NOTIFY_RESEND)])

    async def notify(self, notices: Sequence[bytes]) -> None:
        """Tell the kernel of contents; what it does not know any more needs no telling."""
        if notices:
            await asyncio.get_running_loop().run_in_executor(self._notifier, self._tell, notices)

    async def forget(self, notice: bytes) -> None:
        """Have the kernel forget an entry of a folder."""
        await asyncio.get_running_loop().run_in_executor(self._forgetter, self._tell, [notice])

    def _tell(self, notices: Sequence[bytes]) -> None:
        for notice in notices:
            with contextlib.suppress(FileNotFoundError):
                os.write(self._fd, notice)

    def _take(self) -> None:
        try:
            data = os.read(self._fd, fuse.BUFFER)
        except OSError as error:
            # ENOENT: the caller was killed before we came.
            if error.errno not in {errno.EAGAIN, errno.EINTR, errno.ENOENT}:
                self._end(error)
            return
        try:
            request = fuse.parse_request(data)
        except ProtocolError:
            logger.exception("%s", self._name)
            return
        if request.op in UNANSWERED:
            return
        if request.op == Op.INTERRUPT:
            self._interrupt(request.interrupted)
            return
        if request.op == Op.INIT:
            # What comes next waits for the answer.
            self._reply(fuse.pack_reply(request.unique, fuse.pack_init(request.body)))
            return
        task = asyncio.get_running_loop().create_task(self._attend(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if request.op == Op.WRITE:
            self._writes[request.unique] = task
            task.add_done_callback(lambda _: self._writes.pop(request.unique, None))

    def _interrupt(self, unique: int) -> None:
        """Answer a write at once, as it may take long; all else is about to be answered."""
        task = self._writes.get(unique)
        if task and not task.done():
            task.cancel()
            self._reply(fuse.pack_reply(unique, error=ERESTARTSYS))

    def _end(self, error: OSError) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if error.errno != errno.ENODEV:  # unmounted
            logger.error("%s: %s", self._name, error)
        if not self._gone.done():
            self._gone.set_result(None)

    async def _attend(self, request: Request) -> None:
        assert self._answer
        try:
            reply = fuse.pack_reply(request.unique, await self._answer(request))
        except OSError as error:
            reply = fuse.pack_reply(request.unique, error=error.errno or errno.EIO)
        except Exception:
            logger.exception("%s: request %d of process %d", self._name, request.op, request.pid)
            reply = fuse.pack_reply(request.unique, error=errno.EIO)
        self._reply(reply)

    def _reply(self, reply: bytes) -> None:
        try:
            os.write(self._fd, reply)
        except FileNotFoundError:
            pass  # the caller was killed meanwhile
        except OSError as error:
            logger.warning("%s: an answer of %d bytes: %s", self._name, len(reply), error)
