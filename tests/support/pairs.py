"""Programs with the two ends of a socket pair in two processes, either of which may move."""

from __future__ import annotations

import functools

from support.clusters import Cluster, wait_until

STOP, SAID = "/root/pair.stop", "/root/pair.said"

HEAD = """\
import errno, os, select, signal, socket, stat, subprocess, sys, time
KIND = getattr(socket, "SOCK_" + (sys.argv[1:] or ["STREAM"])[0])
mine, other = socket.socketpair(socket.AF_UNIX, KIND)

def move(node, pid):
    subprocess.run(["migrate", str(node), str(pid)], check=True)

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def fork():
    if child := os.fork():
        other.close()
        mine.recv(1)  # from now on each has one end
    else:
        mine.close()
        other.send(b"+")
    return child

def attempt(do, *words):
    try:
        return do(*words)
    except OSError as error:
        return errno.errorcode[error.errno]
"""


class Pair:
    """A program of tests/programs that sends from each end to the other until it is to stop."""

    def __init__(self, cluster: Cluster, program: str) -> None:
        self._cluster = cluster
        # Of its own session: daemons die, and commands of the host with them.
        begin = f"setsid python3 /root/{program} {STOP} </dev/null >{SAID} 2>&1 &"
        cluster.run(1, "sh", "-c", f"rm -f {STOP}; cd /; {begin}")
        wait_until(lambda: "pids" in cluster.run(1, "cat", SAID), "it has begun")
        _, parent, child = cluster.run(1, "cat", SAID).split()
        self.pids = {"parent": parent, "child": child}

    def move(self, who: str, node: int, by: int = 1) -> bool:
        """Move one of the two; tell whether it has moved."""
        return self._cluster.try_run(by, "migrate", str(node), self.pids[who]).status == 0

    def wait_moved(self, who: str, node: int, by: int = 1) -> None:
        """Move it as soon as it can: what a refused move has left may have to end."""
        wait_until(functools.partial(self.move, who, node, by), f"{who} moves to node{node}")

    def stop(self, node: int = 1) -> dict[tuple[str, str], list[str]]:
        """Have it end; return what it says of who, and of what."""
        cluster = self._cluster
        cluster.run(node, "touch", STOP)
        wait_until(
            lambda: "ended" in cluster.try_run(node, "cat", SAID).out, "it ends", within_s=120
        )
        said = [line.split() for line in cluster.run(node, "cat", SAID).splitlines()]
        assert said[-1] == ["ended", "0"], said
        return {(name, what): rest for name, what, *rest in said[1:-1]}
