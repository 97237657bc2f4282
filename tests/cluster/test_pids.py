"""PIDs: each node has a range of its own."""

from __future__ import annotations

from pathlib import Path

from support.clusters import Cluster
from support.programs import install

RANGE = 1 << 15


def test_pids_are_of_their_node_however_often_they_begin_again(
    trio: Cluster, tmp_path: Path
) -> None:
    forks = install(trio, "forks", tmp_path)
    for node in (1, 3):
        low, high, again = map(int, trio.run(node, forks, str(2 * RANGE)).split())
        assert (node << 15) <= low < high < (node + 1) << 15
        assert again >= 2


def test_what_is_started_by_anybody_is_in_the_range(trio: Cluster) -> None:
    for node in (1, 2, 3):
        started = {
            "by the host": trio.run(node, "sh", "-c", "echo $$"),
            "by init": trio.run(node, "env", "SSI_PROC=local", "pgrep", "-x", "agetty"),
        }
        for who, pid in started.items():
            assert int(pid) >> 15 == node, who
