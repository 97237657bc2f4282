"""A process on node 1 with children, which it tells of (tests/programs/parent.py)."""

from __future__ import annotations

import subprocess

from ssi.host.paths import TOP
from support.clusters import Cluster, wait_until

PROGRAM = (TOP / "tests/programs/parent.py").read_text()
REAL = (
    "SSI_PROC=local ps -eo pid=,comm=,stat=,ppid=,args= | "
    "awk '$1 > 32768 && $2 ~ /^(python3|onnode|criu)/ && !/ssi.node.main/'"
)
"""What of ours is on a node, by its kernel's own word."""


class Parent:
    """Such a process, started on node 1."""

    def __init__(self, cluster: Cluster, program: str = PROGRAM) -> None:
        self._cluster = cluster
        words = ["exec", "-c", str(cluster.number), "1", "--", "python3", "-c", program]
        self.process = cluster.ssi.person.start(
            ["ssi", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid, self.where = self.read()

    def read(self) -> list[str]:
        """Return the next line that it says."""
        assert self.process.stdout
        return str(self.process.stdout.readline(), "ascii").split()

    def ask(self, *words: object) -> list[str]:
        """Return what it answers."""
        assert self.process.stdin
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()
        *answer, self.where = self.read()
        return answer

    def fork(self) -> str:
        """Return the PID of a new child."""
        return self.ask("fork")[0]

    def wait(self, pid: str) -> int:
        """Have it wait for a child; return the status."""
        return int(self.ask("wait", pid)[0])

    def end(self) -> None:
        """Have it end."""
        self.process.kill()
        self.process.communicate()


def check_empty(cluster: Cluster) -> None:
    """Wait until nothing of ours is left on any node."""
    for node in (1, 2, 3):
        left = [""]

        def is_empty(node: int = node, left: list[str] = left) -> bool:
            left[0] = cluster.run(node, "sh", "-c", REAL)
            return not left[0]

        try:
            wait_until(is_empty, f"nothing left on node {node}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {left[0]}") from error


def move(cluster: Cluster, pid: str, *nodes: int) -> None:
    """Move a process from node to node."""
    for node in nodes:
        cluster.run(3, "migrate", str(node), pid)
        assert cluster.run(3, "where_pid", pid) == f"{node}\n"
