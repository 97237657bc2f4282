"""The node daemon is killed again and again, under load: nothing a user runs is harmed."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until

KILLS = 50
SEED = 50

# Writes lines under a lock that all nodes want; starts programs; asks and counts.
WORK = """\
import fcntl, os, subprocess, sys
node, number = sys.argv[1], 0
with open("/var/tmp/lines", "a") as file:
    while not os.path.exists("/run/enough"):
        number += 1
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{node} {number}\\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)
        assert subprocess.run(["/bin/true"]).returncode == 0
        said = subprocess.run(["clusternode_num"], capture_output=True, text=True)
        assert said.stdout == node + "\\n", said
        done = subprocess.run(["clreg", "add", "dies", "1"], capture_output=True)
        print("acknowledged" if done.returncode == 0 else "unknown", flush=True)
print("lines", number, os.getpid())
"""


@pytest.fixture
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3) as cluster:
        cluster.run(1, "clreg", "set", "dies", "0")
        yield cluster


def start_work(cluster: Cluster, node: int) -> None:
    """Start WORK so that no daemon is its parent; what it says goes to a file."""
    script = 'setsid python3 -c "$0" "$1" >/var/tmp/work-$1 2>&1 </dev/null &'
    cluster.run(node, "sh", "-c", script, WORK, str(node))


def getty(cluster: Cluster, node: int) -> str:
    """Return the PID of the login on the node's console."""
    return cluster.run(node, "env", "SSI_PROC=local", "pgrep", "-x", "agetty")


def answers(cluster: Cluster, node: int) -> bool:
    """Tell whether the daemon of `node` answers, and has the view all have."""
    result = cluster.try_run(node, "cluster")
    return result.status == 0 and result.out == "1-3\n"


def test_a_killed_daemon_harms_nothing(trio: Cluster) -> None:
    nodes = (1, 2, 3)
    look = ["env", "SSI_PROC=local", "pgrep", "-x", "agetty"]
    wait_until(lambda: all(trio.try_run(n, *look).out for n in nodes), "logins")
    before = {node: getty(trio, node) for node in nodes}
    view = {(row["view"], row["init_node"]) for row in trio.nodes().values()}
    for node in nodes:
        start_work(trio, node)
    chance = random.Random(SEED)
    killed = 0
    with ThreadPoolExecutor() as pool:
        while killed < KILLS:
            victims = chance.sample(nodes, chance.choice((1, 2, 3)))
            list(pool.map(lambda node: kill_daemon(trio, node), victims))
            killed += len(victims)
            for node in victims:
                wait_until(functools.partial(answers, trio, node), f"node{node} answers")
    said: Counter[str] = Counter()
    lines = {}
    for node in nodes:
        trio.run(node, "touch", "/run/enough")
        works = "SSI_PROC=local pgrep -f '^python3 -c import fcntl'"
        trio.run(node, "sh", "-c", f"while {works}; do sleep 0.1; done")
        *words, last = trio.run(node, "cat", f"/var/tmp/work-{node}").splitlines()
        said += Counter(words)
        lines[node] = int(last.split()[1])
    assert set(said) <= {"acknowledged", "unknown"}
    value = int(trio.run(1, "clreg", "get", "dies"))
    assert 0 < said["acknowledged"] <= value <= said.total()
    written = Counter(int(line.split()[0]) for line in
                      trio.run(1, "cat", "/var/tmp/lines").splitlines())  # fmt: skip
    assert written == lines
    assert {node: getty(trio, node) for node in nodes} == before
    assert {(row["view"], row["init_node"]) for row in trio.nodes().values()} == view
