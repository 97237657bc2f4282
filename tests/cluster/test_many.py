"""Many processes: what they leave behind is nothing."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clusters import Cluster, Ssi, started, wait_until
from support.programs import install

logger = logging.getLogger(__name__)

COUNTS = """\
ghosts=$(ls /run/ssi/ghosts | wc -l) bodies=$(ls /run/ssi/bodies | wc -l)
standins=$(ls /run/ssi/standins | grep -vc '^visitors$')
for process in /proc/[0-9]*; do
    words=$(tr '\\0' ' ' <$process/cmdline 2>/dev/null)
    case $words in
    "/usr/bin/python3 "*ssi.node.main* | *"/lib/ssi/launcher "*) ours="$ours $process/fd" ;;
    esac
    grep -q '^State:.Z' $process/status 2>/dev/null && zombies=$((zombies + 1))
done
echo $ghosts $bodies $standins ${zombies:-0} $(ls $ours | grep -c '^[0-9]')
"""


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes with room for many."""
    with started(ssi, 3, "-m", "512") as cluster:
        yield cluster


def count(cluster: Cluster, node: int) -> list[int]:
    """Return how many ghosts, bodies, stand-ins and zombies there are on a node.

    Then, how many descriptors daemon and launcher have.
    """
    words = ("exec", "-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c", COUNTS)
    return [int(word) for word in cluster.ssi(*words).split()]


def settle(cluster: Cluster, before: dict[int, int], *, more: int = 8) -> None:
    """Wait until nothing is left; `before` has the descriptors, which may be `more` now."""
    for node, fds in before.items():

        def is_settled(node: int = node, fds: int = fds) -> bool:
            *left, now = count(cluster, node)
            return not any(left) and now <= fds + more

        wait_until(is_settled, f"node{node}: {count(cluster, node)}")


@pytest.mark.slow
def test_thousands_of_commands_elsewhere(trio: Cluster) -> None:
    script = "for n in $(seq $0); do onnode $((n % 3 + 1)) true || echo $?; done"
    assert trio.run(1, "bash", "-c", script, "30") == ""
    before = {node: count(trio, node)[-1] for node in (1, 2, 3)}
    for _ in range(20):
        assert trio.run(1, "bash", "-c", script, "100") == ""
    settle(trio, before)


# As many as its first argument says, one each 0.3 s; says which failed, and how long it took.
PACED = """\
import subprocess, sys, time
start = time.monotonic()
for number in range(int(sys.argv[1])):
    time.sleep(max(0, start + number * 0.3 - time.monotonic()))
    status = subprocess.run(["onnode", str(number % 3 + 1), "true"]).returncode
    if status:
        print(f"{number}: {status}")
print(f"{time.monotonic() - start:.0f} s")
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_hundred_commands_a_minute_for_ten_minutes(trio: Cluster) -> None:
    assert len(trio.run(1, "python3", "-c", PACED, "30").splitlines()) == 1
    settle(trio, dict.fromkeys((1, 2, 3), 1000))
    before = {node: count(trio, node)[-1] for node in (1, 2, 3)}
    done = trio.try_run(1, "python3", "-c", PACED, "2000", within_s=1200)
    assert done.status == 0
    assert len(done.out.splitlines()) == 1, done
    settle(trio, before, more=0)
    logger.info("%s; descriptors %s, then %s", done.out.strip(), before,
                {node: count(trio, node)[-1] for node in before})  # fmt: skip


@pytest.mark.slow
def test_five_thousand_processes_are_seen_and_killed(trio: Cluster, tmp_path: Path) -> None:
    many = install(trio, "many", tmp_path)
    before = {node: count(trio, node)[-1] for node in (1, 2, 3)}
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
    before = {node: count(trio, node)[-1] for node in (1, 2, 3)}
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
