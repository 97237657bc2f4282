"""System V shared memory: one segment on all nodes, whose content is the same on all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from support.clusters import Cluster, Ssi, kill_daemon, started, wait_until
from support.fifos import Refused
from support.ipc import CREAT, EXCL, MEMORY, IpcActor, using

_keys = itertools.count(0x7710)
RDONLY = 0o10000
LOCK = 11
NOBODY = 65534
WAIT, WAKE = 0, 1
REMOVED = 0o1000


@pytest.fixture(scope="module")
def own(ssi: Ssi) -> Iterator[Cluster]:
    """Three nodes that no other test uses."""
    with started(ssi, 3, "-m", "256") as cluster:
        yield cluster


@pytest.fixture
def trio(own: Cluster) -> Iterator[Cluster]:
    """They, all up; no segment is left."""
    own.restore(1, 2, 3)
    yield own
    wait_until(lambda: not list_files(own), "all files are gone")


@pytest.fixture
def key() -> int:
    """A key that nobody uses."""
    return next(_keys)


def refused(action: Callable[[], object]) -> str:
    """Return the name of the error that `action` ends with."""
    with pytest.raises(Refused) as caught:
        action()
    return str(caught.value)


def list_files(cluster: Cluster) -> list[str]:
    """Return what segments are kept in."""
    return cluster.run(1, "sh", "-c", "ls /cluster/sysv.* 2>/dev/null || true").split()


def nattch(actor: IpcActor, memory: int) -> int:
    """Return how often it is attached."""
    found: int = actor.do("about", memory)[4]
    return found


def see(cluster: Cluster, node: int, memory: int) -> list[str]:
    """Return its row of /proc/sysvipc/shm."""
    rows = [row.split() for row in cluster.run(node, "cat", "/proc/sysvipc/shm").splitlines()]
    return next((row for row in rows if row[1] == str(memory)), [])


def test_a_key_is_one_segment(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2, 3) as [one, two, three]:
        assert refused(lambda: two.do("shmget", key, 4096, 0)) == "ENOENT"
        memory = one.do("shmget", key, 9000)
        assert one.do("shmat", memory) == 0
        one.do("put", memory, 8990, "from one")
        assert not list_files(trio)
        assert [actor.do("shmget", key, 9000, 0) for actor in (two, three)] == [memory, memory]
        assert refused(lambda: two.do("shmget", key, 9000, CREAT | EXCL | 0o600)) == "EEXIST"
        assert refused(lambda: two.do("shmget", key, 9001, 0)) == "EINVAL"
        for actor in (two, three):
            actor.do("shmat", memory)
            assert actor.do("get", memory, 8990, 8) == "from one"
            # The last page is there as a whole.
            assert actor.do("get", memory, 9001, 2) == "\0\0"
        three.do("put", memory, 0, "from three")
        one.do("put", memory, 12000, "behind")
        assert [actor.do("get", memory, 0, 10) for actor in (one, two)] == ["from three"] * 2
        assert two.do("get", memory, 12000, 6) == "behind"
        # What one adds nobody loses.
        adding = [actor.begin("add", memory, 4096, 1, 20000) for actor in (one, two, three)]
        for doing in adding:
            doing.result()
        assert two.do("add", memory, 4096, 0) == 60000
        one.do("rmid", MEMORY, memory)


def test_who_sleeps_in_it_is_woken(trio: Cluster) -> None:
    """Before another node has it and afterwards."""
    with using(trio, 1, 1, 2) as [one, other, two]:
        memory = one.do("shmget", 0, 4096)
        for actor in (one, other):
            actor.do("shmat", memory)
        early = other.begin("futex", memory, 64, WAIT, 0)
        early.wait_blocked()
        two.do("shmat", memory)
        # It looks again, as its place is another one.
        assert early.result() == 0
        late = other.begin("futex", memory, 64, WAIT, 0)
        late.wait_blocked()
        two.do("futex", memory, 64, WAKE, 1)
        assert late.result() == 0
        two.do("rmid", MEMORY, memory)


def test_attachments_are_counted_everywhere(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2, 3) as [one, two, three]:
        memory = one.do("shmget", key, 4096)
        assert nattch(two, memory) == 0
        one.do("shmat", memory)
        child = one.do("fork", memory)
        two.do("shmat", memory, RDONLY)
        second = two.do("fork", memory)
        assert [nattch(actor, memory) for actor in (one, two, three)] == [4] * 3
        assert see(trio, 3, memory)[6] == "4"
        one.do("put", memory, 0, "forked")
        assert two.do("get", memory, 0, 6) == "forked"
        one.do("end", child)
        two.do("end", second)
        two.do("shmdt", memory)
        assert [nattch(actor, memory) for actor in (one, two, three)] == [1] * 3
        assert three.do("about", memory)[2] == one.pid
        # Removed, it is there as long as somebody has it, and by its number only.
        two.do("shmat", memory)
        three.do("rmid", MEMORY, memory)
        assert refused(lambda: one.do("shmget", key, 4096, 0)) == "ENOENT"
        assert [actor.do("about", memory)[0] & REMOVED for actor in (one, two)] == [REMOVED] * 2
        again = two.do("shmget", key, 4096)
        assert again != memory
        one.do("shmdt", memory)
        three.do("shmat", memory)
        assert three.do("get", memory, 0, 6) == "forked"
        two.do("shmdt", memory)
        assert nattch(one, memory) == 1
        three.kill()
        wait_until(lambda: not list_files(trio), "it is gone")
        assert refused(lambda: one.do("shmat", memory)) == "EINVAL"
        assert refused(lambda: two.do("shmat", memory)) == "EINVAL"
        assert not see(trio, 1, memory)
        one.do("rmid", MEMORY, again)


def test_who_may_what(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2) as [home, other], using(trio, 2) as [user]:
        user.do("become", NOBODY)
        memory = home.do("shmget", key, 4096, CREAT | 0o600)
        assert refused(lambda: user.do("shmget", key, 4096, 0o600)) == "EACCES"
        assert refused(lambda: user.do("shmat", memory)) == "EACCES"
        assert refused(lambda: user.do("rmid", MEMORY, memory)) == "EPERM"
        assert not list_files(trio)
        other.do("shmat", memory)
        other.do("set_mode", MEMORY, memory, 0o604)
        assert home.do("about", memory)[0] == 0o604
        assert refused(lambda: user.do("shmat", memory)) == "EACCES"
        assert user.do("shmat", memory, RDONLY) == 0
        home.do("set_mode", MEMORY, memory, 0o606)
        assert user.do("shmat", memory) == 0
        assert refused(lambda: user.do("shmctl", memory, LOCK)) in {"EPERM", "ENOMEM"}
        assert other.do("shmctl", memory, LOCK) == 0
        mine = user.do("shmget", key + 0x100, 4096)
        assert home.do("stat", MEMORY, mine)[1:5] == [NOBODY] * 4
        home.do("shmat", mine)
        user.do("rmid", MEMORY, mine)
        other.do("rmid", MEMORY, memory)


def test_processes_with_it_stay(trio: Cluster) -> None:
    with using(trio, 1, 2) as [one, two]:
        memory = one.do("shmget", 0, 4096)
        for actor in (one, two):
            actor.do("shmat", memory)
        for actor in (one, two):
            result = trio.try_run(3, "migrate", "3", str(actor.pid))
            assert "it shares System V memory" in result.err
        one.do("rmid", MEMORY, memory)


def test_daemons_are_killed(trio: Cluster, key: int) -> None:
    """The segment is node 1's; those of both nodes that use it are killed in each phase."""

    def kill(*nodes: int) -> None:
        for node in nodes:
            kill_daemon(trio, node)

    with using(trio, 1, 2, via=3) as [home, other]:
        memory = home.do("shmget", key, 4 << 20)
        home.do("shmat", memory)
        for at in range(0, 4 << 20, 1 << 20):
            home.do("put", memory, at, f"{at:08}")
        attaching = other.begin("shmat", memory)
        kill(1, 2)
        attaching.result()
        for at in range(0, 4 << 20, 1 << 20):
            assert other.do("get", memory, at, 8) == f"{at:08}"
        assert nattch(other, memory) == 2
        home.do("shmdt", memory)
        other.do("rmid", MEMORY, memory)
        kill(1, 2)
        # There is no daemon that could hear of it.
        other.do("shmdt", memory)
        wait_until(lambda: not list_files(trio), "it is gone")
        assert refused(lambda: other.do("shmat", memory)) == "EINVAL"


def test_its_home_dies(trio: Cluster, key: int) -> None:
    with using(trio, 3, 1, 2) as [home, one, two]:
        memory, lonely = home.do("shmget", key, 4096), home.do("shmget", key + 0x100, 4096)
        removed = home.do("shmget", key + 0x200, 4096)
        home.do("shmat", lonely)
        for actor in (home, two):
            actor.do("shmat", memory)
            actor.do("shmat", removed)
        home.do("rmid", MEMORY, removed)
        home.do("set_mode", MEMORY, memory, 0o640)
        two.do("put", memory, 0, "from two")
        trio.crash(3)
        # Node 1 never had it.
        assert one.do("shmget", key, 4096, 0) == memory
        one.do("shmat", memory)
        assert one.do("get", memory, 0, 8) == "from two"
        assert two.do("about", memory)[0] == 0o640
        assert nattch(two, memory) == 2
        assert refused(lambda: one.do("shmat", lonely)) == "EINVAL"
        assert refused(lambda: two.do("shmget", key + 0x100, 4096, 0)) == "ENOENT"
        assert one.do("shmat", removed) == 0
        trio.restore(1, 2, 3)
        with using(trio, 3) as [back]:
            assert back.do("shmget", key, 4096, 0) == memory
            back.do("shmat", memory)
            assert back.do("add", memory, 64, 5) == 0
            assert one.do("add", memory, 64, 1) == 5
            back.do("rmid", MEMORY, memory)
            assert refused(lambda: two.do("shmget", key, 4096, 0)) == "ENOENT"


def test_another_node_dies(trio: Cluster, key: int) -> None:
    with using(trio, 1, 3) as [home, other]:
        memory = home.do("shmget", key, 4096)
        for actor in (home, other):
            actor.do("shmat", memory)
        home.do("put", memory, 0, "at home")
        home.do("rmid", MEMORY, memory)
        home.do("shmdt", memory)
        assert nattch(home, memory) == 1
        trio.crash(3)
        wait_until(lambda: not list_files(trio), "it is gone")


def test_a_home_leaves_in_order(trio: Cluster, key: int) -> None:
    with using(trio, 3) as [home], using(trio, 2) as [two]:
        memory = home.do("shmget", key, 4096)
        home.do("shmat", memory)
        home.do("put", memory, 0, "of three")
        two.do("shmat", memory)
        trio.run(1, "clusternode_shutdown", "3")
        wait_until(lambda: set(trio.nodes()) == {1, 2}, "node 3 has left")
        assert two.do("get", memory, 0, 8) == "of three"
        assert two.do("shmget", key, 4096, 0) == memory
        two.do("rmid", MEMORY, memory)
