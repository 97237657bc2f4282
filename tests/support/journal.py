"""Writers that acknowledge each record once it is on the shared disk, and the check of them all."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterable, Mapping

from support.clusters import Cluster, wait_until

WRITER = """
import fcntl, os, sys
fd = os.open("/root/journal", os.O_RDWR | os.O_CREAT | os.O_APPEND)
for number in range(10**9):
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, f"{sys.argv[1]}:{number}\\n".encode())
    os.fsync(fd)
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.write(1, f"{number}\\n".encode())
"""


class Writer:
    """A writer in one node, and the records it has acknowledged, with the time they were seen."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        self.node = node
        self.records: list[tuple[float, int]] = []
        self.process: subprocess.Popen[bytes] = cluster.start_python(node, WRITER, str(node))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.records.append((time.monotonic(), int(line)))

    def end(self) -> None:
        """End it, unless its node has; all it acknowledged has arrived then."""
        self.process.terminate()
        self.process.wait(timeout=30)
        self._thread.join(timeout=30)


def start_writers(cluster: Cluster, nodes: Iterable[int]) -> dict[int, Writer]:
    """Start a writer in each of `nodes`."""
    return {node: Writer(cluster, node) for node in nodes}


def wait_for_records(
    writers: Mapping[int, Writer], *, each: int = 0, more_than: Mapping[int, int] | None = None,
    by: int = 0, nodes: Iterable[int] | None = None,
) -> None:  # fmt: skip
    """Wait until each writer has acknowledged `each` records, or `by` more than before."""
    wanted = {n: (more_than or {}).get(n, each) + by for n in (nodes or writers)}
    wait_until(
        lambda: all(len(writers[n].records) >= count for n, count in wanted.items()),
        f"records: {wanted}",
    )


def check_records(cluster: Cluster, writers: Mapping[int, Writer], *, reader: int) -> list[str]:
    """End the writers; return the acknowledged records that `reader` does not find."""
    for writer in writers.values():
        writer.end()
    written = set(cluster.run(reader, "cat", "/root/journal").split())
    acknowledged = [f"{w.node}:{number}" for w in writers.values() for _, number in w.records]
    assert acknowledged
    return [record for record in acknowledged if record not in written]
