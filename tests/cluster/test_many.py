"""Many processes: what they leave behind is nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clusters import Cluster, Ssi, started, wait_until
from support.programs import install

COUNTS = """\
ghosts=$(ls /run/ssi/ghosts | wc -l) bodies=$(ls /run/ssi/bodies | wc -l)
for process in /proc/[0-9]*; do
    words=$(tr '\\0' ' ' <$process/cmdline 2>/dev/null)
    case $words in "/usr/bin/python3 "*ssi.node.main*) daemon=$process ;; esac
    grep -q '^State:.Z' $process/status 2>/dev/null && zombies=$((zombies + 1))
done
echo $ghosts $bodies ${zombies:-0} $(ls $daemon/fd | wc -l)
"""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes with room for many."""
    with started(ssi, 3, "-m", "512") as cluster:
        yield cluster


def count(cluster: Cluster, node: int) -> tuple[int, int, int, int]:
    """Return how many ghosts, bodies, zombies and descriptors of the daemon there are."""
    words = ("exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", COUNTS)
    ghosts, bodies, zombies, fds = map(int, cluster.ssi(*words).split())
    return ghosts, bodies, zombies, fds


def settle(cluster: Cluster, before: dict[int, int]) -> None:
    """Wait until nothing is left; `before` has the daemons' descriptors."""
    for node, fds in before.items():

        def is_settled(node: int = node, fds: int = fds) -> bool:
            *left, now = count(cluster, node)
            return left == [0, 0, 0] and now <= fds + 8

        # pkill has a descriptor of each process, and so stand-ins of those elsewhere, one by one.
        wait_until(is_settled, f"node{node}: {count(cluster, node)}", within_s=400)


@pytest.mark.slow
def test_thousands_of_commands_elsewhere(trio: Cluster) -> None:
    script = "for n in $(seq $0); do onnode $((n % 3 + 1)) true || echo $?; done"
    assert trio.run(1, "bash", "-c", script, "30") == ""
    before = {node: count(trio, node)[3] for node in (1, 2, 3)}
    for _ in range(20):
        assert trio.run(1, "bash", "-c", script, "100") == ""
    settle(trio, before)


@pytest.mark.slow
def test_five_thousand_processes_are_seen_and_killed(trio: Cluster, tmp_path: Path) -> None:
    many = install(trio, "many", tmp_path)
    before = {node: count(trio, node)[3] for node in (1, 2, 3)}
    words = ["ssi", "exec", "-c", str(trio.number)]
    running = [
        trio.ssi.person.start(
            [*words, str(node), "--", many, "1670"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )
        for node in (1, 2, 3)
    ]  # fmt: skip
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == b"1670\n"
    for node in (1, 2, 3):
        assert int(trio.run(node, "pgrep", "-c", "-x", "many")) == 3 * 1671
    trio.run(2, "pkill", "-KILL", "-x", "many")
    for process in running:
        process.wait()
    wait_until(lambda: trio.try_run(1, "pgrep", "-x", "many").status == 1, "all are gone")
    settle(trio, before)


@pytest.mark.slow
def test_a_bomb_of_commands_elsewhere(trio: Cluster) -> None:
    before = {node: count(trio, node)[3] for node in (1, 2, 3)}
    bomb = (
        "ulimit -u 150; bomb() { [ $1 -gt 0 ] || exit 0; "
        'onnode $((RANDOM % 3 + 1)) bash -c "$(declare -f bomb); bomb $(($1 - 1))" & '
        'onnode $((RANDOM % 3 + 1)) bash -c "$(declare -f bomb); bomb $(($1 - 1))" & wait; }; '
        "bomb 5"
    )
    trio.try_run(
        1, "setpriv", "--reuid", "1001", "--clear-groups", "bash", "-c", bomb, within_s=300
    )
    assert trio.run(1, "onnode", "2", "hostname") == "node2\n"
    settle(trio, before)
