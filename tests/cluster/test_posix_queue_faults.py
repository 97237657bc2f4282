"""POSIX message queues while nodes and daemons die: nothing is lost or doubled, nobody hangs."""

from __future__ import annotations

import itertools
import select
import signal
from collections.abc import Callable, Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import Refused
from support.queues import CREAT, EXCL, RDWR, using

_names = (f"/faulty{n}" for n in itertools.count())
MAKE = CREAT | RDWR
FROM_QUEUE = -3


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


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


def test_nodes_die(own: Cluster, name: str) -> None:
    """First one that uses a queue, then one that has it: with that it is gone, at once."""
    with using(own, 1, 2) as [one, two], using(own, 3) as [third]:
        kept, lost = one.do("open", name, MAKE), third.do("open", name + "lost", MAKE)
        first, second = one.do("open", name + "lost"), two.do("open", name + "lost")
        using_it = third.do("open", name)
        third.begin("receive", using_it).wait_blocked()
        third.do("send", lost, "lost")
        assert two.do("getattr", second)[3] == 1
        assert one.do("receive", first) == [0, "lost"]
        waiting = one.begin("receive", first)
        waiting.wait_blocked()
        watching = two.begin("poll", second, select.POLLIN, 60000)
        watching.wait_blocked()
        own.crash(3)
        assert refused(waiting.result) == "EIO"
        assert watching.result() & select.POLLERR
        assert refused(lambda: two.do("send", second, "")) == "EIO"
        one.do("close", first)
        assert refused(lambda: one.do("open", name + "lost")) == "ENOENT"
        wait_until(lambda: own.sees_all(1, 2), "node 3 is gone")
        # Its name is free.
        again = two.do("open", name + "lost", MAKE | EXCL)
        one.do("send", one.do("open", name + "lost"), "anew")
        assert two.do("receive", again) == [0, "anew"]
        # Nobody of the dead node takes what is sent now.
        for text in ("a", "b"):
            one.do("send", kept, text)
        assert [two.do("receive", two.do("open", name))[1] for _ in range(2)] == ["a", "b"]
        one.do("unlink", name)
        two.do("unlink", name + "lost")
        own.restore(1, 2, 3)
