"""Nodes die at random, the init node among them: nothing runs twice, and nothing is lost."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until

logger = logging.getLogger(__name__)

NODES = (1, 2, 3)
SEED = 20261121

SERVICE = """\
#!/bin/bash
echo "$SSI_NODE $(date +%s.%N)" >>/var/tmp/starts
sync /var/tmp/starts
exec -a chaos-service sleep 1000000
"""

SCRIPT = """\
#!/bin/sh
echo "${0##*/} $1 $SSI_EVENT $SSI_NODE $(date +%s.%N)" >>/var/tmp/events
"""

COUNT = """\
import os, subprocess
while not os.path.exists("/run/enough"):
    done = subprocess.run(["clreg", "add", "chaos", "1"], capture_output=True, text=True)
    print("acknowledged" if done.returncode == 0 else "unknown", flush=True)
"""
"""Counts for as long as its node lives; what it was told goes out at once."""


@dataclasses.dataclass(frozen=True)
class ScriptRun:
    """rc.nodeup or rc.nodedown has run for `node`, on `where`."""

    name: str
    node: int
    where: int
    moment: float


@dataclasses.dataclass
class Counting:
    """One run of COUNT."""

    node: int
    process: subprocess.Popen[bytes]

    def end(self) -> Counter[str]:
        """Return how many increments were acknowledged, once it has ended."""
        assert self.process.stdout
        return Counter(self.process.stdout.read().decode().split())


@dataclasses.dataclass
class Chaos:
    """What was done to the cluster, and when; the nodes' clocks are the machine's."""

    cluster: Cluster
    random: random.Random
    kills: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)
    """Node, and the times between which it was killed."""
    boots: Counter[int] = dataclasses.field(default_factory=Counter)
    counters: dict[int, Counting] = dataclasses.field(default_factory=dict)
    counted: Counter[str] = dataclasses.field(default_factory=Counter)

    def count_on(self, *nodes: int) -> None:
        """Have `nodes` count, too."""
        for node in nodes:
            self.counters[node] = Counting(node, self.cluster.start_python(node, COUNT))

    def kill(self, *nodes: int) -> None:
        """Kill `nodes` at once."""
        before = time.time()
        self.cluster.crash(*nodes)
        after = time.time()
        self.kills += [(node, before, after) for node in nodes]
        for node in nodes:
            self.collect(node)
            # Its last was under way, and what it said of those before may have died with it.
            self.counted["died"] += 3

    def collect(self, node: int) -> None:
        """Note what `node` has counted."""
        self.counted += self.counters.pop(node).end()

    def boot(self, *nodes: int) -> None:
        """Boot `nodes`, and have them count."""
        self.cluster.add(*nodes)
        self.boots.update(nodes)
        self.count_on(*nodes)

    def died_between(self, node: int, first: float, last: float) -> bool:
        """Tell whether `node` was killed between two times."""
        return any(n == node and first < after and before < last for n, before, after in self.kills)

    def lines(self, name: str) -> list[list[str]]:
        """Return the words in the lines of a log on the root."""
        text = self.cluster.run(max(self.cluster.nodes()), "cat", f"/var/tmp/{name}")
        return [line.split() for line in text.splitlines()]


@pytest.fixture
def chaos(ssi: Ssi) -> Iterator[Chaos]:
    """Three nodes with a service, scripts for nodeup and nodedown, and a counter on each."""
    with started(ssi, len(NODES)) as cluster:
        for path, text in (
            ("/usr/local/sbin/chaos-service", SERVICE),
            ("/etc/rc.d/rc.nodeup", SCRIPT), ("/etc/rc.d/rc.nodedown", SCRIPT),
        ):  # fmt: skip
            cluster.run(1, "sh", "-c", 'cat >"$0" && chmod 755 "$0"', path, given=text.encode())
        entry = b"ch:3:respawn:/usr/local/sbin/chaos-service\n"
        cluster.run(1, "tee", "-a", "/etc/inittab.ssi", given=entry)
        cluster.run(1, "telinit", "q")
        cluster.run(1, "clreg", "set", "chaos", "0")
        chaos = Chaos(cluster, random.Random(SEED))
        wait_until(lambda: not pending(cluster), "the first events are over")
        cluster.run(1, "sh", "-c", ": >/var/tmp/events")
        chaos.count_on(*NODES)
        yield chaos
        for counter in chaos.counters.values():
            counter.process.kill()


def pending(cluster: Cluster) -> bool:
    """Tell whether a script has still to run, or the view to change."""
    nodes = cluster.nodes()
    states = cluster.run(max(nodes), "cluster", "-v")
    views = {(row["view"], tuple(row["members"])) for row in nodes.values()}
    events = cluster.run(max(nodes), "cluster", "--json")
    return (
        "CLEANUP" in states or len(views) != 1 or next(iter(views))[1] != tuple(sorted(nodes))
        or '"pending_events": 0' not in events
    )  # fmt: skip


def torment(chaos: Chaos, kills: int) -> None:
    """Kill that many nodes: often one, sometimes two; often the init node, sometimes in haste."""
    while len(chaos.kills) < kills:
        victims = chaos.random.sample(NODES, chaos.random.choice((1, 1, 1, 2)))
        chaos.kill(*victims)
        # At any moment of what follows a death, the next change comes.
        time.sleep(chaos.random.uniform(0, 4))
        if chaos.random.random() < 0.3:
            kill_daemon(chaos.cluster, chaos.random.choice(sorted(chaos.cluster.nodes())))
        chaos.boot(*victims)
        time.sleep(chaos.random.uniform(0, 1))
    wait_until(lambda: not pending(chaos.cluster), "the last events are over")


def check_counter(chaos: Chaos) -> None:
    """What was acknowledged is in the counter; what was not may be."""
    for node in NODES:
        chaos.cluster.run(node, "touch", "/run/enough")
        chaos.collect(node)
    value = int(chaos.cluster.run(1, "clreg", "get", "chaos"))
    sure = chaos.counted["acknowledged"]
    logger.info("%d counted, %d acknowledged: %s", value, sure, chaos.counted)
    assert sure > 0
    assert sure <= value <= chaos.counted.total()


def check_service(chaos: Chaos) -> None:
    """It was started elsewhere only when the node where it ran was dead."""
    starts = [(int(node), float(moment)) for node, moment in chaos.lines("starts")]
    for (node, moment), (_, later) in itertools.pairwise(starts):
        assert chaos.died_between(node, moment, later), (node, moment, later, chaos.kills)
    running = [
        n
        for n in NODES
        if chaos.cluster.run(n, "sh", "-c", "SSI_PROC=local pgrep -f ^chaos-service||:")
    ]
    assert len(running) == 1
    logger.info("%d starts of the service", len(starts))


def check_scripts(chaos: Chaos) -> None:
    """Each event had its script once; twice only if the node that ran it died over it."""
    runs: dict[int, list[ScriptRun]] = {}
    for name, node, event, where, moment in chaos.lines("events"):
        run = ScriptRun(name, int(node), int(where), float(moment))
        runs.setdefault(int(event), []).append(run)
    repeated = 0
    for number, each in runs.items():
        assert len({(run.name, run.node) for run in each}) == 1, f"{number} is one event: {each}"
        for run, again in itertools.pairwise(each):
            assert chaos.died_between(run.where, run.moment, again.moment), (each, chaos.kills)
            repeated += 1
    happened = Counter((each[0].name, each[0].node) for each in runs.values())
    lost = Counter(node for node, _, _ in chaos.kills)
    assert happened == Counter(
        {("rc.nodedown", node): lost[node] for node in NODES if lost[node]}
        | {("rc.nodeup", node): chaos.boots[node] for node in NODES if chaos.boots[node]}
    )
    logger.info("%d events, %d scripts run again: their node died over them", len(runs), repeated)


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.timeout(3000)
def test_chaos(chaos: Chaos, kills: int) -> None:
    torment(chaos, kills)
    check_counter(chaos)
    check_service(chaos)
    check_scripts(chaos)
