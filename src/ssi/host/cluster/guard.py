"""The process of a running cluster: a guard around its supervisor.

    python -m ssi.host.cluster.guard CLUSTER LOCK_FD READY_FD

LOCK_FD is only held. READY_FD is closed after a byte was written when the control socket is there.

The guard does nothing but wait for the supervisor and then end all that is left of the cluster, so
that even a supervisor that was killed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

from ssi.host.cluster.spec import ClusterPlace
from ssi.host.uml.process import become_subreaper


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _end_all() -> None:
    # Each that dies hands its own children to us, until there are none.
    while pids := _children():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def main() -> int:
    """Run the supervisor of a cluster and clean up after it."""
    place = ClusterPlace(int(sys.argv[1]))
    ready = int(sys.argv[3])
    become_subreaper()
    # Its end is the supervisor's business: whoever wants the cluster to end asks that.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Whenever SIGTERM comes, it reaches the supervisor, or finds that there is none yet.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        from ssi.host.cluster import main as supervisor  # noqa: PLC0415 - only the child loads asyncio

        os._exit(supervisor.main(place, ready))
    os.close(ready)

    def pass_on(number: int, _: object) -> None:
        os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _, status = os.waitpid(pid, 0)
    _end_all()
    shutil.rmtree(place.runtime, ignore_errors=True)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
