"""A move during which something dies: one process is left, or its parent sees its death."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import random
from collections.abc import Iterator, Sequence

import pytest

from ssi.common.addresses import node_address
from ssi.host.paths import TOP
from support.clusters import FIND_DAEMON, Cluster, Ssi, started, wait_until

logger = logging.getLogger(__name__)

PROGRAM = TOP / "tests/programs/moves.py"
NODES = (1, 2, 3)

STAYS, MOVES, ENDS = "stays", "moves", "ends"

WAYS = {"away": (1, 2), "on": (2, 3), "home": (2, 1)}

ALWAYS = dict.fromkeys(WAYS, MOVES)
NEVER = dict.fromkeys(WAYS, STAYS)
NOT_HOME = {**NEVER, "home": ENDS}
"""Where it comes home its ghost has been given up by then."""
AGAIN = {**ALWAYS, "away": STAYS}
"""Another node's daemon has asked for the move, and asks the next daemon again."""

POINTS = {
    "departure-begun": {"": AGAIN, "criu": NEVER, "cut": NEVER},
    "departure-dumped": {"": AGAIN, "criu": NEVER, "cut": NEVER},
    "departure-sent": {"": AGAIN, "criu": NEVER, "cut": NEVER},
    "departure-ready": {"": ALWAYS, "criu": {**NEVER, "home": MOVES}, "cut": ALWAYS},
    "departure-committed": {"": ALWAYS, "criu": AGAIN, "cut": ALWAYS},
    "departure-followed": {"": ALWAYS, "criu": ALWAYS, "cut": ALWAYS},
    "departure-done": {"": ALWAYS, "criu": ALWAYS, "cut": ALWAYS},
    "arrival-begun": {"": NEVER, "cut": ALWAYS},
    "arrival-called": {"": {"home": ENDS}, "criu": {"home": ENDS}, "cut": {"home": MOVES}},
    "device-opening": {"": {"away": STAYS, "on": STAYS}},
    "arrival-restoring": {"": NOT_HOME, "criu": NEVER, "cut": ALWAYS},
    "arrival-ready": {"": ALWAYS, "criu": dict.fromkeys(WAYS, ENDS), "cut": ALWAYS},
    "arrival-ended": {"": ALWAYS, "criu": dict.fromkeys(WAYS, ENDS), "cut": ALWAYS},
}
"""What comes of it if the daemon that comes there is killed, CRIU is, or all of the daemon's
connections with other nodes break."""

LEFT = """\
cd /run/ssi; for left in departures/* arrivals/* pagers/* kept/* ghosts/* bodies/*; do
    [ -e $left ] && echo $left && [ -f $left ] && cat $left && echo
done
for process in /proc/[0-9]*; do
    case $(cat $process/comm 2>/dev/null) in criu | homecoming | nsenter | pager | ssi-pages)
        echo $process $(tr '\\0' ' ' <$process/cmdline) $(grep '^State' $process/status) ;;
    esac
    grep -q '^State:.Z' $process/status 2>/dev/null && echo $process is a zombie
    grep -q '^TracerPid:.[1-9]' $process/status 2>/dev/null && echo $process is traced
done
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Something that happens at a point of a move."""

    way: str
    point: str
    kind: str
    outcome: str

    @property
    def order(self) -> str:
        """What PROGRAM is told."""
        source, target = WAYS[self.way]
        where = source if self.point.startswith("departure") else target
        fault = f"{self.point} {self.kind}".strip()
        return json.dumps({"from": source, "to": target, "where": where, "fault": fault})

    @property
    def outcome_said(self) -> str:
        """What PROGRAM says of it."""
        source, target = WAYS[self.way]
        return {STAYS: f"node{source}", MOVES: f"node{target}", ENDS: "ended -9"}[self.outcome]


def list_cases(kind: str) -> list[Case]:
    """Return all of a kind, each in the order of a move."""
    return [
        Case(way, point, kind, outcomes[kind][way])
        for way in WAYS for point, outcomes in POINTS.items()
        if way in outcomes.get(kind, {})
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trio(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes."""
    with started(ssi, 3, "-m", "256") as cluster:
        cluster.run(1, "sh", "-c", "cat >/root/moves.py", given=PROGRAM.read_bytes())
        yield cluster


def start_moves(cluster: Cluster, *words: str, orders: Sequence[str] = ()) -> None:
    """Have PROGRAM do all that."""
    given = "".join(f"{order}\n" for order in orders).encode()
    cluster.run(1, "sh", "-c", "cat >/root/orders; rm -f /root/said", given=given)
    # Of its own session: daemons die, and commands of the host with them.
    script = 'cd /; setsid python3 /root/moves.py "$@" </root/orders >/root/said 2>&1 &'
    cluster.run(1, "sh", "-c", script, "sh", *words)


def read_moves(cluster: Cluster) -> list[str]:
    """Return what it says; a node that has no daemon now says nothing."""
    return cluster.try_run(1, "cat", "/root/said").out.splitlines()


def has_ended(said: Sequence[str]) -> bool:
    """Tell whether that is all."""
    return any(line.startswith(("killed -9", "Traceback")) for line in said)


def list_left(cluster: Cluster) -> list[str]:
    """Return what moves have left behind on any node."""
    words = ("exec", "-c", str(cluster.number), "--ramdisk")
    said = [cluster.ssi.try_(*words, str(node), "--", "sh", "-c", LEFT) for node in NODES]
    return [line for one in said for line in (one.out + one.err).splitlines()]


def check_settled(cluster: Cluster) -> None:
    """Have nothing left of any move."""
    wait_until(lambda: not list_left(cluster), f"{list_left(cluster)} are gone")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["", "criu", "cut"], ids=["daemon", "criu", "connections"])
def test_something_dies(trio: Cluster, kind: str) -> None:
    check_moves(trio, kind)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kind", ["", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("criu", "cut"))]
)
def test_something_dies_and_memory_follows(trio: Cluster, kind: str) -> None:
    check_moves(trio, kind, "heavy")


def check_moves(trio: Cluster, kind: str, *words: str) -> None:
    """Make all moves in which something of that kind dies."""
    cases = list_cases(kind)
    start_moves(trio, *words, orders=[case.order for case in cases])
    wait_until(lambda: has_ended(read_moves(trio)), "all is done", within_s=800)
    said = read_moves(trio)
    # pytest would show the first of them.
    assert len(said) == len(cases) + 1, "\n".join(said[-20:])
    wrong = {
        case: line for case, line in zip(cases, said, strict=False)
        if line.partition(" (")[0] != case.outcome_said
    }  # fmt: skip
    assert not wrong
    check_settled(trio)


MANY = 250
SEED = 20261122
EVERY_S = 40.0

COUNT_FDS = FIND_DAEMON + "ls /proc/$daemon/fd | wc -l"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_moves_of_several_at_once(trio: Cluster) -> None:
    words = ("exec", "-c", str(trio.number), "--ramdisk", "1", "--", "sh", "-c", COUNT_FDS)
    before = int(trio.ssi(*words))
    start_moves(trio, str(MANY), str(SEED))
    chance = random.Random(SEED)
    lost = 0
    while not has_ended(read_moves(trio)):
        # Node 1 has the parent, who sees the deaths.
        node = chance.choice((2, 3))
        trio.crash(node)
        trio.add(node)
        lost += 1
        with contextlib.suppress(AssertionError):
            wait_until(lambda: has_ended(read_moves(trio)), "some time", within_s=EVERY_S)
    *wrong, last = read_moves(trio)
    assert not wrong
    logger.info("%s of %d have moved, ended; node lost %d times", last, MANY, lost)
    if gone := set(NODES) - set(trio.nodes()):
        logger.warning("lost by themselves, as by a machine that stands still: %s", gone)
        trio.add(*gone)
    check_settled(trio)
    assert int(trio.ssi(*words)) <= before + 8


# Counts in a file of its own, with where it runs; says on a pipe that it has begun.
COUNTS = """\
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
print(os.getpid(), flush=True)
number = 0
while True:
    number += 1
    os.write(file, b"%d %s\\n" % (number, os.uname().nodename.encode()))
    time.sleep(0.05)
"""

SET = """\
mount -o remount,bind,rw /run/ssi && cd /run/ssi && rm -f fault.reached && echo "$0" >fault.new &&
mv fault.new fault
"""

# With what the shell itself can do: the root waits for the daemon that waits for us. Who answers no
# connection is dead: to be told so by the kernel takes a minute.
GO_ON = """\
exec 8<>/dev/ptmx
until [ -e /run/ssi/fault.reached ]; do sleep 0.05; done; : >$0.reached
while :; do
    (: </dev/tcp/$1/329) 2>/dev/null & connecting=$!
    read -r -t 3 -u 8
    kill $connecting 2>/dev/null && break
    wait $connecting || break
done
echo >/run/ssi/fault.reached
"""


class Counter:
    """COUNTS, started on node 1 by a shell that tells how it ends."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        self._cluster = cluster
        self.node = node
        """From where we look."""
        self.file = cluster.run(node, "mktemp", "/root/counter.XXXXXX").strip()
        script = '(python3 -c "$0" "$1"; echo $? >"$1.status") </dev/null 2>"$1.errors" | cat'
        words = ["sh", "-c", f'setsid sh -c \'{script}\' "$0" "$1" >"$1.pid" &', COUNTS, self.file]
        cluster.run(1, *words)
        wait_until(lambda: self._read(".pid"), "it has begun")
        self.pid = self._read(".pid").strip()

    def _read(self, suffix: str = "") -> str:
        return self._cluster.try_run(self.node, "cat", self.file + suffix).out

    def read(self) -> list[list[str]]:
        """Return what it has written: numbers, and where it ran."""
        text = self._read()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def check(self) -> int:
        """Have it count on, without a number left out or said twice; return where it runs."""
        before = len(self.read())
        wait_until(lambda: len(self.read()) > before + 1, f"{self.pid} counts")
        lines = self.read()
        assert [int(number) for number, _ in lines] == list(range(1, len(lines) + 1))
        return int(lines[-1][1].removeprefix("node"))

    def check_ended(self, status: int) -> None:
        """Have its parent see that it has ended so."""
        wait_until(lambda: self._read(".status") == f"{status}\n", f"{self.pid} has ended")


SOURCE, TARGET, HOME = "source", "target", "home"

DEATHS = [
    ("away", "arrival-begun", TARGET, STAYS), ("away", "arrival-ready", TARGET, STAYS),
    ("away", "arrival-ended", TARGET, ENDS), ("away", "departure-ready", SOURCE, MOVES),
    ("away", "departure-dumped", SOURCE, ENDS), ("on", "departure-dumped", SOURCE, ENDS),
    ("on", "departure-ready", SOURCE, ENDS), ("on", "departure-done", SOURCE, MOVES),
    ("on", "departure-dumped", HOME, MOVES), ("on", "departure-ready", HOME, MOVES),
    ("on", "departure-committed", HOME, MOVES), ("on", "arrival-ready", TARGET, STAYS),
    ("on", "arrival-ended", TARGET, ENDS), ("home", "departure-dumped", SOURCE, ENDS),
    ("home", "departure-ready", SOURCE, MOVES), ("home", "departure-done", SOURCE, MOVES),
    ("home", "arrival-begun", TARGET, STAYS), ("home", "arrival-restoring", TARGET, STAYS),
    ("home", "arrival-ended", TARGET, ENDS),
]  # fmt: skip
"""Which node dies at a point of the daemon's there (of the source's, for the home), and what comes
of the process. What ends with the node that it came from ends with its parent."""

OFTEN = {
    ("away", "arrival-ended", TARGET), ("away", "departure-ready", SOURCE),
    ("on", "departure-ready", SOURCE), ("on", "departure-ready", HOME),
    ("home", "departure-ready", SOURCE), ("home", "arrival-restoring", TARGET),
}  # fmt: skip
"""The rest takes its time."""


def list_deaths() -> list[object]:
    """Return DEATHS, marked."""
    return [
        pytest.param(*death, marks=[] if death[:3] in OFTEN else pytest.mark.slow)
        for death in DEATHS
    ]


def die_at(cluster: Cluster, node: int, point: str) -> None:
    """Have a node die at a point of its next move."""
    cluster.run(node, "sh", "-c", SET, f"{point} node")


def lose_home(cluster: Cluster, counter: Counter, source: int, target: int, point: str) -> None:
    """Have node 1 die while the daemon of the source waits at a point of the move."""
    cluster.run(source, "sh", "-c", SET, f"{point} wait")
    words = ["setsid", "bash", "-c", GO_ON, counter.file, node_address(1)]
    script = '"$@" >/dev/null 2>&1 </dev/null & setsid migrate $0 >/dev/null 2>&1 </dev/null &'
    cluster.run(source, "sh", "-c", script.replace("$0", f"{target} {counter.pid}"), "sh", *words)
    reached = f"{counter.file}.reached"
    wait_until(lambda: not cluster.try_run(3, "ls", reached).status, f"{point} is reached")
    cluster.crash(1)


@pytest.mark.parametrize(("way", "point", "who", "outcome"), list_deaths())
def test_a_node_dies(trio: Cluster, way: str, point: str, who: str, outcome: str) -> None:
    source, target = WAYS[way]
    victim = {SOURCE: source, TARGET: target, HOME: 1}[who]
    counter = Counter(trio, next(node for node in (3, 2) if node != victim))
    trio.run(1, "migrate", str(source), counter.pid)
    if who == HOME:
        lose_home(trio, counter, source, target, point)
    else:
        die_at(trio, victim, point)
        trio.try_run(counter.node, "migrate", str(target), counter.pid)
    wait_until(lambda: not trio.sees_all(*NODES), f"node{victim} is lost")
    if outcome == ENDS and victim == 1:
        gone = trio.try_run(counter.node, "kill", "-0", counter.pid)
        assert gone.status == 1
    elif outcome == ENDS:
        counter.check_ended(137)
    else:
        wait_until(lambda: counter.check() == (source if outcome == STAYS else target), outcome)
        assert trio.run(counter.node, "where_pid", counter.pid) == f"{counter.check()}\n"
        trio.run(counter.node, "kill", "-9", counter.pid)
    trio.restore(*NODES)
    check_settled(trio)


def test_the_node_it_came_from_is_lost(trio: Cluster) -> None:
    counter = Counter(trio, 3)
    trio.run(1, "migrate", "2", counter.pid)
    trio.crash(1)
    wait_until(lambda: not trio.sees_all(*NODES), "node1 is lost")
    check_orphan(trio, counter, 2)
    parent = trio.run(3, "ps", "-o", "ppid=", "-p", counter.pid)
    assert parent.split() == ["1"]
    trio.run(3, "migrate", "3", counter.pid)
    check_orphan(trio, counter, 3)
    trio.run(2, "kill", "-STOP", counter.pid)
    trio.run(2, "kill", "-CONT", counter.pid)
    trio.restore(*NODES)
    for node in (3, 2, 1, 2):
        trio.run(1, "migrate", str(node), counter.pid)
        check_orphan(trio, counter, node)
    trio.run(1, "kill", counter.pid)
    wait_until(lambda: trio.try_run(1, "kill", "-0", counter.pid).status, "it has ended")
    check_settled(trio)


def check_orphan(cluster: Cluster, counter: Counter, node: int) -> None:
    """Have it run there, known to all."""
    wait_until(lambda: counter.check() == node, f"it runs on node{node}")
    others = (3, 2) if 1 not in cluster.nodes() else NODES
    for other in others:
        assert cluster.run(other, "where_pid", counter.pid) == f"{node}\n"
        cluster.run(other, "kill", "-0", counter.pid)
        assert cluster.run(other, "ps", "-o", "comm=", "-p", counter.pid) == "python3\n"
