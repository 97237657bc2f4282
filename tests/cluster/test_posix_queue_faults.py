"""POSIX message queues while nodes and daemons die: nothing is lost or doubled, nobody hangs."""

from __future__ import annotations

import itertools
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.clusters import (
    Cluster,
    Ssi,
    answers,
    kill_daemon,
    started,
    stop_daemon,
    wait_until,
)
from support.fifos import Doing, Refused
from support.queues import CREAT, EXCL, RDWR, using

_names = (f"/faulty{n}" for n in itertools.count())
MAKE = CREAT | RDWR
FROM_QUEUE = -3
NOBODY = 65534


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def whole(own: Cluster) -> None:
    """All are up, whatever the test before has done."""
    own.restore(1, 2, 3)


@pytest.fixture
def name() -> str:
    """A name that nobody uses."""
    return next(_names)


def refused(action: Callable[[], object]) -> str:
    """Return the name of the error that `action` ends with."""
    with pytest.raises(Refused) as caught:
        action()
    return str(caught.value)


def test_daemons_are_killed_in_every_phase(own: Cluster, name: str) -> None:
    """The queue is on node 1; what node 2 does waits for the next daemons, and is done once."""
    victims = itertools.cycle([(1,), (2,), (1, 2)])

    def kill() -> None:
        for node in next(victims):
            kill_daemon(own, node)

    with using(own, 1, 2, via=3) as [home, other]:
        making = home.begin("open", name, MAKE)
        kill()
        queue = making.result()
        opening = other.begin("open", name)
        kill()
        ours = opening.result()
        for _ in range(3):
            waiting = other.begin("receive", ours)
            waiting.wait_blocked()
            kill()
            home.do("send", queue, "received")
            assert waiting.result() == [0, "received"]
        waiting = other.begin("receive", ours)
        waiting.wait_blocked()
        kill()
        other.interrupt(waiting)
        assert refused(waiting.result) == "EINTR"
        watching = other.begin("poll", ours, select.POLLIN, 60000)
        watching.wait_blocked()
        other.do("notify", ours)
        kill()
        home.do("send", queue, "seen")
        assert watching.result() == select.POLLIN
        assert other.do("wait_signal") == [signal.SIGUSR2, FROM_QUEUE]
        kill()
        assert other.do("receive", ours, 60) == [0, "seen"]
        other.do("unlink", name)


def test_daemons_are_killed_while_it_flows(own: Cluster, name: str) -> None:
    """Each is done once, whenever the daemons are killed."""
    victims = itertools.cycle([(1,), (2,), (1, 2)])

    def kill() -> None:
        for node in next(victims):
            kill_daemon(own, node)

    with using(own, 1, 2, via=3) as [home, other]:
        queue = home.do("open", name, MAKE)
        ours = other.do("open", name)
        there, back = other.begin("flow", ours, 60), home.begin("take", queue, 60)
        for _ in range(2):
            kill()
        there.result()
        assert back.result() == list(range(60))
        there, back = home.begin("flow", queue, 60), other.begin("take", ours, 60)
        for _ in range(2):
            kill()
        there.result()
        assert back.result() == list(range(60))
        # Names, and who ends while there is no daemon.
        kill()
        other.do("unlink", name)
        assert refused(lambda: home.do("open", name)) == "ENOENT"
        other.do("open", name, MAKE | EXCL)
        kill()
        other.kill()
        home.do("unlink", name)
        assert refused(lambda: home.do("open", name)) == "ENOENT"


def test_a_queue_outlives_its_node(own: Cluster, name: str) -> None:
    """And its heir, with all that the two had acknowledged."""
    removed, mine = name + "removed", name + "mine"
    with using(own, 1, 2) as [one, two], using(own, 3) as [home]:
        made = home.do("open", name, MAKE, 0o600, 16, 512)
        here, there = one.do("open", name), two.do("open", name)
        home.do("chmod", made, 0o644)
        for text, priority in (("b", 1), ("a", 5), ("c", 1), ("gone", 9)):
            home.do("send", made, text, priority)
        two.do("send", there, "d", 1)
        assert home.do("receive", made) == [9, "gone"]
        # One that has no name any more, and one that nobody else has had open.
        nameless = home.do("open", removed, MAKE)
        kept = two.do("open", removed)
        home.do("unlink", removed)
        home.do("send", nameless, "still there")
        home.do("open", mine, MAKE)
        own.crash(3)
        assert two.do("getattr", there) == [0, 16, 512, 4]
        assert two.do("about", two.do("open", name)) == [0o644, 0, 0]
        assert two.do("receive", kept) == [0, "still there"]
        assert refused(lambda: two.do("open", removed)) == "ENOENT"
        assert refused(lambda: two.do("open", mine)) == "ENOENT"
        two.do("close", two.do("open", mine, MAKE | EXCL))
        two.do("unlink", mine)
        assert one.do("receive", one.do("open", name)) == [5, "a"]
        # Node 1 has them now; what it does itself is known to node 2 before it is done.
        local = one.do("open", name)
        one.do("send", local, "e", 7)
        assert one.do("receive", local) == [7, "e"]
        assert one.do("receive", local) == [1, "b"]
        one.do("send", here, "f")
        one.do("chmod", local, 0o604)
        wait_until(lambda: own.sees_all(1, 2), "node 3 is gone")
        own.crash(1)
        assert [two.do("receive", there) for _ in range(3)] == [[1, "c"], [1, "d"], [0, "f"]]
        assert two.do("about", two.do("open", name)) == [0o604, 0, 0]
        two.do("send", kept, "for itself")
        assert two.do("receive", kept) == [0, "for itself"]
        two.do("unlink", name)
        assert not [each for each in two.do("list") if each.startswith(name[1:])]


def test_who_waits_goes_on(own: Cluster, name: str) -> None:
    """For a message, for room, for either by poll, and for being told."""
    full, empty = name + "full", name + "empty"
    with using(own, 1, 2) as [one, two], using(own, 3) as [home]:
        home.do("send", home.do("open", full, MAKE, 0o600, 1), "first")
        for each in (name, empty):
            home.do("open", each, MAKE)
        ours, theirs = one.do("open", full), two.do("open", full)
        there, watched = two.do("open", name), one.do("open", empty)
        sending = one.begin("send", ours, "second", 3)
        receiving, interrupted = (two.begin("receive", there, *words) for words in ((), (60,)))
        watching = one.begin("poll", watched, select.POLLIN, 60000)
        one.do("notify", watched)
        for waiting in (sending, receiving, interrupted, watching):
            waiting.wait_blocked()
        own.crash(3)
        two.interrupt(interrupted)
        assert refused(interrupted.result) == "EINTR"
        assert two.do("receive", theirs) == [0, "first"]
        assert sending.result() == 0
        assert two.do("receive", theirs) == [3, "second"]
        assert refused(lambda: two.do("notify", two.do("open", empty))) == "EBUSY"
        two.do("send", two.do("open", empty), "told")
        assert watching.result() == select.POLLIN
        assert one.do("wait_signal") == [signal.SIGUSR2, FROM_QUEUE]
        one.do("send", one.do("open", name), "to who waits")
        assert receiving.result() == [0, "to who waits"]
        for each in (name, full, empty):
            two.do("unlink", each)


def test_its_node_dies_while_it_flows(own: Cluster, name: str) -> None:
    """What was acknowledged is there once: of its own node's processes, and of others'."""
    names = [name + each for each in ("sent", "taken", "between")]
    crashed = threading.Event()
    sent: list[object] = []
    taken: list[Any] = []

    def repeat(action: Callable[[int], Doing], done: list[object]) -> None:
        for number in itertools.count():
            doing = action(number)
            while not doing.is_done and not crashed.is_set():
                time.sleep(0.001)
            if crashed.is_set():
                return
            done.append(doing.result())

    with using(own, 1, 2) as [one, two], using(own, 3) as [home]:
        there = [home.do("open", each, MAKE) for each in names]
        ours, theirs = ([who.do("open", each) for each in names] for who in (one, two))
        draining = one.begin("drain", ours[0])
        flows = [two.begin("flow", theirs[1], 200), one.begin("flow", ours[2], 80)]
        between = two.begin("take", theirs[2], 80)
        threads = [
            threading.Thread(target=repeat, args=words)
            for words in (
                (lambda n: home.begin("send", there[0], f"{n:05}" * (1 + n % 20)), sent),
                (lambda _: home.begin("receive", there[1]), taken),
            )
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(sent) > 8 and len(taken) > 8, "they flow")
        own.crash(3)
        crashed.set()
        for thread in threads:
            thread.join()
        two.do("send", theirs[0], "end")
        got = draining.result()
        rest_of_it = one.begin("drain", ours[1])
        for flow in flows:
            flow.result()
        two.do("send", theirs[1], "end")
        rest = rest_of_it.result()
        assert got == list(range(len(got)))
        assert len(sent) <= len(got) <= len(sent) + 1
        numbers = [int(text[:5]) for _, text in taken]
        # The dying node may have taken one that its process has not said it has.
        assert numbers == list(range(len(numbers)))
        assert rest == list(range(200 - len(rest), 200))
        assert 0 <= 200 - len(rest) - len(numbers) <= 1
        assert between.result() == list(range(80))
        for each in names:
            two.do("unlink", each)


def test_the_heirs_daemon_dies_as_well(own: Cluster, name: str) -> None:
    """Node 2 has it; the daemon that takes it over is killed several times."""
    with using(own, 1, via=3) as [one], using(own, 3) as [third], using(own, 2) as [home]:
        made = home.do("open", name, MAKE, 0o600, 2)
        here, there = one.do("open", name), third.do("open", name)
        for text in ("first", "second"):
            home.do("send", made, text)
        sending = one.begin("send", here, "third")
        # What node 1 is given it is not told before its daemon is killed, and its home is dead.
        given = home.do("open", name + "given", MAKE)
        theirs = third.do("open", name + "given")
        receiving = one.begin("receive", one.do("open", name + "given"))
        for waiting in (sending, receiving):
            waiting.wait_blocked()
        stop_daemon(own, 1, 10, then="KILL")
        wait_until(lambda: not answers(own, 1), "the daemon of node 1 is stopped")
        third.do("send", theirs, "once")
        assert home.do("getattr", given)[3] == 0
        own.crash(2)
        assert receiving.result() == [0, "once"]
        assert third.do("getattr", theirs)[3] == 0
        for _ in range(2):
            kill_daemon(own, 1)
        assert [third.do("receive", there) for _ in range(2)] == [[0, "first"], [0, "second"]]
        sending.result()
        assert third.do("receive", there) == [0, "third"]
        again = one.begin("receive", one.do("open", name))
        again.wait_blocked()
        third.do("send", there, "x" * 1000)
        assert again.result() == [0, "x" * 1000]
        for each in (name, name + "given"):
            one.do("unlink", each)
        assert refused(lambda: third.do("open", name)) == "ENOENT"


def test_who_uses_it_dies(own: Cluster, name: str) -> None:
    """Nobody of a dead node takes what is sent now.

    Then its home dies: a full queue of the usual size is kept, a larger one is not.
    """
    with using(own, 1, 2) as [one, two], using(own, 1) as [user], using(own, 3) as [third]:
        kept = one.do("open", name, MAKE)
        large = one.do("open", name + "large", MAKE, 0o600, 10, 8192)
        much = one.do("open", name + "much", MAKE, 0o600, 13, 8192)
        user.do("become", NOBODY)
        user.do("send", user.do("open", name + "user", MAKE, 0o640), "theirs")
        for each in ("large", "user"):
            two.do("open", name + each)
        # Of this only the two know that will be dead.
        third.do("send", third.do("open", name + "user"), "from the dead")
        lost = two.do("open", name + "much")
        texts = [str(number) * 8192 for number in range(10)]
        for text in texts:
            one.do("send", large, text)
            one.do("send", much, text)
        for text in texts[:3]:
            one.do("send", much, text)
        using_it = third.do("open", name)
        third.begin("receive", using_it).wait_blocked()
        own.crash(3)
        wait_until(lambda: own.nodes()[1]["members"] == [1, 2], "its death is confirmed")
        for text in ("a", "b"):
            one.do("send", kept, text)
        ours = two.do("open", name)
        assert two.do("receive", ours)[1] == "a"
        own.restore(1, 2, 3)
        own.crash(1)
        assert two.do("receive", ours) == [0, "b"]
        whole = two.do("open", name + "large")
        assert [two.do("receive", whole)[1] for _ in texts] == texts
        its = two.do("open", name + "user")
        assert two.do("about", its) == [0o640, NOBODY, NOBODY]
        assert [two.do("receive", its)[1] for _ in range(2)] == ["theirs", "from the dead"]
        assert refused(lambda: two.do("receive", lost)) == "EIO"
        assert refused(lambda: two.do("open", name + "much")) == "ENOENT"
        for each in ("", "large", "user"):
            two.do("unlink", name + each)
