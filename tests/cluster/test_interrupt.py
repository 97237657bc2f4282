"""Ctrl-C, and worse, at any moment: a start leaves nothing behind, an add leaves the others be."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from support.clusters import Cluster, Ssi, started, wait_until

NUMBER = 10777
INTERRUPTED = 130
PHASES = ("booting", "init", "ring", "locks", "mounted", "ready")


class Starting:
    """A start that is under way, seen from outside."""

    def __init__(self, ssi: Ssi) -> None:
        self._ssi = ssi
        self.state = ssi.person.home / f"state/ssi/{NUMBER}"
        self.runtime = ssi.person.home / f"run/ssi/{NUMBER}"
        self._before = ssi.person.processes().keys()
        words = ["ssi", "start", "3", "-c", str(NUMBER), *ssi.images.options]
        self.process = ssi.person.start(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def phase(self) -> int:
        """Return how far the node that is farthest is, as an index of PHASES; -1 before."""
        with socket.socket(socket.AF_UNIX) as asking, contextlib.suppress(OSError):
            asking.settimeout(5)
            asking.connect(str(self.runtime / "control"))
            asking.sendall(b'{"do": "status"}\n')
            with asking.makefile("rb") as answer:
                nodes = json.loads(answer.readline() or b"{}").get("nodes", [])
            return max((PHASES.index(node["state"]) for node in nodes), default=-1)
        return -1

    def wait_for(self, moment: Callable[[Starting], object]) -> None:
        """Return as soon as `moment` has come."""
        deadline = time.monotonic() + 60
        while not moment(self):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def left(self) -> list[object]:
        """Return what there is of the cluster."""
        files = [path for path in (self.state, self.runtime) if path.exists()]
        now = self._ssi.person.processes()
        return [*files, *(words for pid, words in now.items() if pid not in self._before)]


MOMENTS: dict[str, Callable[[Starting], object]] = {
    "at once": lambda _: True,
    "folder": lambda s: s.state.exists(),
    "copying": lambda s: list(s.state.glob("root.img*")),
    "copied": lambda s: (s.state / "root.img").exists(),
    "described": lambda s: (s.state / "cluster.json").exists(),
    "runtime": lambda s: s.runtime.exists(),
    "supervisor": lambda s: (s.state / "log/supervisor.log").exists(),
    "socket": lambda s: (s.runtime / "control").exists(),
    "swap": lambda s: (s.state / "swap_1").exists(),
    "groups": lambda s: (s.runtime / "groups").exists(),
    "console": lambda s: (s.state / "log/node2.uml").exists(),
    **{
        phase: lambda s, number=number: s.phase() >= number  # type: ignore[misc]
        for number, phase in enumerate(PHASES[:-1])
    },
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_nothing(ssi: Ssi, moment: str) -> None:
    starting = Starting(ssi)
    starting.wait_for(MOMENTS[moment])
    starting.process.send_signal(signal.SIGINT)
    out, err = starting.process.communicate(timeout=30)
    assert starting.left() == [], err
    assert out == b""
    assert b"Traceback" not in err
    # Before Python runs our program, the signal ends the shell or the interpreter itself.
    assert starting.process.returncode in {INTERRUPTED, -signal.SIGINT}, err


@pytest.mark.parametrize("moment", ["copying", "runtime", "supervisor", "socket", "swap", "ring"])
def test_a_start_whose_client_is_killed_ends(ssi: Ssi, moment: str) -> None:
    starting = Starting(ssi)
    starting.wait_for(MOMENTS[moment])
    starting.process.kill()
    starting.process.communicate(timeout=30)
    wait_until(
        lambda: not [one for one in starting.left() if isinstance(one, str)], "no process is left"
    )
    # Whom nobody could tell to tidy up left files, and nothing that hinders.
    ssi("clean", *(["--kept", str(NUMBER)] if (starting.state / "root.img").exists() else []))
    assert starting.left() == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["booting", "ring"])
def test_an_add_that_ends_leaves_the_others_alone(
    trio: Cluster, moment: str, how: signal.Signals
) -> None:
    # Those who cannot see a member get no further than to their own ring.
    trio.ssi("net", "-c", str(trio.number), "partition", "1-3", "4,5")
    words = ["ssi", "add", str(trio.number), "4", "5"]
    adding = trio.ssi.person.start(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(
        lambda: PHASES.index(trio.nodes().get(4, {"state": "booting"})["state"])
        >= PHASES.index(moment) and 4 in trio.nodes(),
        "node4 is so far",
    )  # fmt: skip
    adding.send_signal(how)
    _, said = adding.communicate(timeout=30)
    assert b"Traceback" not in said
    wait_until(lambda: set(trio.nodes()) == {1, 2, 3}, "the new ones are gone")
    trio.run(2, "sh", "-c", "echo on >/root/on; sync /root/on")
    assert trio.run(3, "cat", "/root/on") == "on\n"
    trio.run(1, "rm", "/root/on")


@pytest.fixture
def pair(ssi: Ssi) -> Iterator[tuple[Cluster, Cluster]]:
    """Two clusters side by side."""
    with started(ssi, 2) as one, started(ssi, 2) as other:
        yield one, other


def test_two_clusters_do_not_see_each_other(pair: tuple[Cluster, Cluster]) -> None:
    one, other = pair
    assert one.number != other.number
    assert [one.number, other.number] == sorted(
        c["id"] for c in one.ssi.json("ls") if c["id"] in {one.number, other.number}
    )
    for cluster in pair:
        name = str(cluster.number)
        assert cluster.sees_all(1, 2)
        cluster.run(1, "sh", "-c", f"echo {name} >/root/cluster; hostname >>/root/cluster")
        # The same addresses in both, and each reaches its own.
        assert re.search(r"192\.168\.50\.2\b", cluster.run(1, "getent", "hosts", "node2"))
        cluster.run(1, "ping", "-c", "1", "-W", "5", "node2")
    for cluster in pair:
        assert cluster.run(2, "cat", "/root/cluster").split() == [str(cluster.number), "node1"]
    one.crash(2)
    one.run(1, "sync", "-f", "/root")
    assert other.sees_all(1, 2)
    assert set(one.nodes()) == {1}
    one.ssi("net", "partition", "-c", str(one.number), "1", "2")
    other.run(1, "ping", "-c", "1", "-W", "5", "node2")


def test_two_starts_of_one_cluster_at_once_make_one(ssi: Ssi) -> None:
    starts = [Starting(ssi) for _ in range(2)]
    said = [start.process.communicate(timeout=120) for start in starts]
    assert sorted(start.process.returncode for start in starts) == [0, 1], said
    assert len(ssi.json("ls")) >= 1
    ssi("stop", str(NUMBER))
    ssi("clean", "--kept", str(NUMBER))
