"""A program that works while it is moved, and says a line for each step."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

from support.clusters import Cluster, wait_until

NAME_ITSELF = 'echo $$; exec "$@"'


class Worker:
    """Runs a program on a node; what it prints is kept."""

    def __init__(self, cluster: Cluster, node: int, *words: str) -> None:
        self.lines: list[str] = []
        self._process = cluster.ssi.person.start(
            ["ssi", "exec", "-c", str(cluster.number), str(node), "--", "bash", "-c", NAME_ITSELF,
             "worker", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout
        self.pid = self._process.stdout.readline().decode().strip()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(line.decode().rstrip("\r\n"))

    def give(self, data: bytes) -> None:
        """Have it read that."""
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def give_no_more(self) -> None:
        """Have it read the end of that."""
        assert self._process.stdin
        self._process.stdin.close()

    def go_on(self, steps: int = 2) -> None:
        """Wait until it has said so many lines more."""
        wanted = len(self.lines) + steps
        wait_until(lambda: len(self.lines) >= wanted, f"it goes on: {self.lines[-3:]}")

    def say(self, text: str) -> str:
        """Wait until a line begins so; return the first that does."""
        found: list[str] = []

        def is_said() -> bool:
            found[:] = [line for line in self.lines if line.startswith(text)]
            return bool(found)

        wait_until(is_said, f"{text!r} after {self.lines[-3:]}")
        return found[0]

    def end(self) -> list[str]:
        """Wait until it has ended, as it should; return all that it has said."""
        assert self._process.stderr
        said = self._process.stderr.read().decode()
        assert self._process.wait() == 0, said
        self._reader.join()
        return self.lines

    def close(self) -> None:
        """Have nothing run on."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe
            pipe.close()


@contextlib.contextmanager
def working(cluster: Cluster, node: int, *words: str) -> Iterator[Worker]:
    """Have a program work on a node."""
    worker = Worker(cluster, node, *words)
    try:
        yield worker
    finally:
        cluster.try_run(node, "kill", "-9", worker.pid)
        worker.close()
