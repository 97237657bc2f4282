"""System V IPC while nodes and daemons die: objects survive, undo of the dead is done."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import Refused
from support.ipc import NOWAIT, QUEUE, SEMAPHORES, using

_keys = itertools.count(0x6610)
GETVAL, GETNCNT = 12, 14


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


@pytest.fixture
def trio(own: Cluster) -> Iterator[Cluster]:
    """They, all up."""
    own.restore(1, 2, 3)
    yield own
    own.restore(1, 2, 3)


@pytest.fixture
def key() -> int:
    """A key that nobody uses."""
    return next(_keys)


def refused(action: Callable[[], object]) -> str:
    """Return the name of the error that `action` ends with."""
    with pytest.raises(Refused) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize("victims", [(1,), (2,), (1, 2)], ids=str)
def test_daemons_are_killed_in_every_phase(
    trio: Cluster, key: int, victims: tuple[int, ...]
) -> None:
    """The objects are on node 1; what node 2 does waits for the next daemons, and is done once."""

    def kill() -> None:
        for node in victims:
            kill_daemon(trio, node)

    with using(trio, 1, 2, via=3) as [home, other]:
        queue, given = home.do("msgget", key), home.do("semget", key, 2)
        kill()
        assert other.do("msgget", key) == queue
        waiting = other.begin("msgrcv", queue)
        waiting.wait_blocked()
        kill()
        home.do("msgsnd", queue, 1, "received")
        assert waiting.result() == [1, "received"]
        waiting = other.begin("msgrcv", queue)
        waiting.wait_blocked()
        kill()
        other.interrupt(waiting)
        assert refused(waiting.result) == "EINTR"
        home.do("semop", given, [[0, 1, 0]])
        other.lock(given).result()
        kill()
        assert refused(lambda: other.do("semop", given, [[0, -1, NOWAIT]])) == "EAGAIN"
        local = home.lock(given)
        local.wait_blocked()
        kill()
        other.unlock(given)
        assert local.result() == 0
        # Each is done once, whenever the daemons are killed.
        sending = other.begin("flow", queue, 60)
        taking = home.begin("take", queue, 60)
        for _ in range(3):
            kill()
        sending.result()
        assert taking.result() is True
        other.do("rmid", QUEUE, queue)
        home.unlock(given)
        # Whoever ends while there is no daemon gives back what it has.
        other.lock(given).result()
        kill()
        other.kill()
        home.lock(given).result()
        home.do("rmid", SEMAPHORES, given)


def test_the_queues_node_dies(trio: Cluster, key: int) -> None:
    with using(trio, 3, 1, 2) as [home, one, two]:
        queue, forgotten = home.do("msgget", key), home.do("msgget", key + 0x100)
        home.do("msgsnd", forgotten, 1, "nobody else has ever seen it")
        removed = home.do("msgget", key + 0x200)
        one.do("msgsnd", removed, 1, "it will be gone")
        home.do("rmid", QUEUE, removed)
        assert two.do("msgget", key) == queue
        two.do("set_mode", QUEUE, queue, 0o640)
        home.do("msgsnd", queue, 1, "from home")
        one.do("msgsnd", queue, 2, "from one")
        two.do("msgsnd", queue, 3, "from two" * 100)
        assert two.do("msgrcv", queue, 2) == [2, "from one"]
        waiting = one.begin("msgrcv", queue, 4)
        waiting.wait_blocked()
        full = two.begin("msgrcv", queue, 5)
        full.wait_blocked()
        trio.crash(3)
        assert one.do("msgrcv", queue) == [1, "from home"]
        assert two.do("msgget", key, 0) == queue
        assert one.do("stat", QUEUE, queue)[:6] == [key, 0, 0, 0, 0, 0o640]
        two.do("msgsnd", queue, 4, "waited for")
        assert waiting.result() == [4, "waited for"]
        one.do("msgsnd", queue, 5, "this, too")
        assert full.result() == [5, "this, too"]
        for gone in (forgotten, removed):
            assert refused(lambda gone=gone: one.do("msgsnd", gone, 1, "")) == "EINVAL"  # type: ignore[misc]
        assert refused(lambda: two.do("msgget", key + 0x100, 0)) == "ENOENT"
        # The node is back, gives other identifiers, and uses what was its own.
        trio.restore(1, 2, 3)
        with using(trio, 3) as [back]:
            assert back.do("msgget", key, 0) == queue
            assert back.do("msgrcv", queue) == [3, "from two" * 100]
            assert back.do("msgget", key + 0x100) not in {queue, forgotten, removed}
        two.do("rmid", QUEUE, queue)
        assert refused(lambda: one.do("msgget", key, 0)) == "ENOENT"


def test_the_semaphores_node_dies(trio: Cluster, key: int) -> None:
    with using(trio, 3, 1, 2) as [home, one, two]:
        given = home.do("semget", key, 3)
        home.do("setall", given, [1, 1, 7])
        # The first is the dead node's, the second is another's, who waits for the first.
        home.lock(given, 0).result()
        one.lock(given, 1).result()
        assert two.do("getall", given, 3) == [0, 0, 7]
        two.do("semop", given, [[2, -2, 0]])
        waiting = two.begin("semop", given, [[0, -1, 0]])
        waiting.wait_blocked()
        third = two.lock(given, 1)
        third.wait_blocked()
        trio.crash(3)
        assert waiting.result() == 0
        assert one.do("getall", given, 3) == [0, 0, 5]
        assert one.do("semget", key, 3, 0) == given
        # What the living have to undo is undone when they end, and not before.
        assert not third.is_done
        one.kill()
        assert third.result() == 0
        assert two.do("semctl", given, 1, GETVAL) == 0
        two.do("rmid", SEMAPHORES, given)


def test_one_home_after_the_other_dies(trio: Cluster, key: int) -> None:
    with using(trio, 3) as [third]:
        with using(trio, 1, 2) as [first, second]:
            queue, given = first.do("msgget", key), first.do("semget", key, 1)
            first.do("setall", given, [1])
            third.do("msgsnd", queue, 1, "one")
            third.lock(given).result()
            second.do("msgsnd", queue, 1, "two")
            trio.crash(1)
            third.do("msgsnd", queue, 1, "three")
            # Node 2 has them now.
            trio.crash(2)
            assert [third.do("msgrcv", queue)[1] for _ in range(3)] == ["one", "two", "three"]
        assert third.do("semctl", given, 0, GETVAL) == 0
        trio.restore(1, 2, 3)
        with using(trio, 1) as [back]:
            waiting = back.lock(given)
            waiting.wait_blocked()
            third.kill()
            assert waiting.result() == 0
            back.do("rmid", SEMAPHORES, given)
            back.do("rmid", QUEUE, queue)


def test_a_users_node_dies(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2, 3) as [home, one, two]:
        queue, given = home.do("msgget", key), home.do("semget", key, 1)
        home.do("setall", given, [1])
        two.lock(given).result()
        waiting = one.lock(given)
        waiting.wait_blocked()
        leaving = two.begin("msgrcv", queue)
        leaving.wait_blocked()
        trio.crash(3)
        assert waiting.result() == 0
        wait_until(lambda: trio.sees_all(1, 2), "node 3 is gone")
        for number in range(5):
            one.do("msgsnd", queue, 1, f"{number}")
            assert home.do("msgrcv", queue, 0, NOWAIT) == [1, f"{number}"]
        home.do("rmid", QUEUE, queue)
        home.do("rmid", SEMAPHORES, given)


def test_a_stream_goes_on_when_its_home_dies(trio: Cluster, key: int) -> None:
    """Nothing is lost or there twice, whatever was under way."""
    with using(trio, 3, 1, 2) as [home, sender, receiver]:
        queue = home.do("msgget", key)
        sending, taking = sender.begin("flow", queue, 500), receiver.begin("take", queue, 500)
        wait_until(lambda: sender.do("stat", QUEUE, queue)[6], "it flows")
        trio.crash(3)
        assert not sending.is_done
        sending.result()
        assert taking.result() is True
        sender.do("rmid", QUEUE, queue)


def test_a_home_leaves_in_order(trio: Cluster, key: int) -> None:
    """As if it had died, and nothing that waits there keeps it from leaving."""
    with using(trio, 3, 1) as [home, other], using(trio, 2) as [two]:
        queue, given = home.do("msgget", key), home.do("semget", key, 1)
        two.do("msgsnd", queue, 1, "kept")
        two.do("semop", given, [[0, 1, 0]])
        other.lock(given).result()
        waiting = [two.begin("msgrcv", queue, 2), other.begin("semop", given, [[0, -1, 0]])]
        for doing in waiting:
            doing.wait_blocked()
        trio.run(1, "clusternode_shutdown", "3")
        wait_until(lambda: set(trio.nodes()) == {1, 2}, "node 3 has left")
        two.do("msgsnd", queue, 2, "waited for")
        assert waiting[0].result() == [2, "waited for"]
        two.do("semop", given, [[0, 1, 0]])
        assert waiting[1].result() == 0
        assert other.do("msgrcv", queue) == [1, "kept"]
        two.do("rmid", QUEUE, queue)
        two.do("rmid", SEMAPHORES, given)
