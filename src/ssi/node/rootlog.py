"""This node's log lines in files on the shared root, where all nodes can read them.

This daemon must never wait for the root, so a process of the userland writes them. It gets them
through a pipe, and what that does not take is left out.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import os

from ssi.common.logline import LogLine
from ssi.node.root import userland_argv

LIMIT = 1 << 20
"""Bytes of a file, after which it is begun anew; the last one is kept as NAME.log.1."""

KEPT = 500
"""Lines that wait for the process, or for the root, at most."""

PIPE = 256 * 1024
AGAIN_S = 1.0

# One process for all files. busybox: each recipe's root has it, and its awk does not wait until a
# buffer is full. A boot begins new files, so a crash's last lines are in the ones before.
# The program comes by a descriptor, so that a list of processes has one short line.
WRITER = """\
cd /var/log/cluster || exit
[ -z "$2" ] || for log in *.log; do [ -s "$log" ] && mv "$log" "$log.1"; done
exec busybox awk -v limit="$1" -f /proc/self/fd/3 3<<'END'
{
    file = $4
    sub(/:$/, ".log", file)
    print >>file
    fflush(file)
    if ((size[file] += length + 1) > limit) {
        close(file)
        system("mv " file " " file ".1")
        size[file] = 0
    }
}
END
"""


class RootLog:
    """An outlet of the node's log that writes to /var/log/cluster on the root."""

    def __init__(self, *, begin: bool = True) -> None:
        """With `begin`, as at a boot, the files begin anew."""
        self._begin = begin
        self._waiting: collections.deque[bytes] = collections.deque()
        self._pipe = -1
        self._left_out = 0

    def __call__(self, line: LogLine) -> None:
        """Write `line` as soon as the pipe takes it; leave it out if too many wait already."""
        if len(self._waiting) >= KEPT:
            self._left_out += 1
            return
        idle = not self._waiting
        if self._left_out:
            note = LogLine(line.time_us, line.node, line.view, "ssid",
                           f"{self._left_out} lines left out here")  # fmt: skip
            self._waiting.append(f"{note}\n".encode())
            self._left_out = 0
        self._waiting.append(f"{line}\n".encode(errors="backslashreplace"))
        if idle:
            self._write()

    def _write(self) -> None:
        """Write what the pipe takes; more when it has room again."""
        if self._pipe < 0:
            return
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                os.write(self._pipe, self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            loop.add_writer(self._pipe, self._write)
        except BrokenPipeError:
            loop.remove_writer(self._pipe)  # the next process gets it
        else:
            loop.remove_writer(self._pipe)

    async def run(self) -> None:
        """Keep the process running, until cancelled."""
        while True:
            await self._run_once()
            await asyncio.sleep(AGAIN_S)

    async def _run_once(self) -> None:
        process: asyncio.subprocess.Process | None = None
        read_end, self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(read_end, True)
            with contextlib.suppress(PermissionError):  # a user's limit on all pipes
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE)
            begin, self._begin = "begin" * self._begin, False
            process = await asyncio.create_subprocess_exec(
                *userland_argv(["/bin/sh", "-c", WRITER, "sh", str(LIMIT), begin]),
                stdin=read_end, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            os.close(read_end)
            read_end = -1
            self._write()
            await process.wait()
        finally:
            asyncio.get_running_loop().remove_writer(self._pipe)
            for fd in (read_end, self._pipe):
                if fd >= 0:
                    os.close(fd)
            self._pipe = -1
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
