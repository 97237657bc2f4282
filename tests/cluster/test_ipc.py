"""System V queues and semaphores: same key, same object, on every node."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from support.clusters import Cluster, wait_until
from support.fifos import Refused
from support.ipc import CREAT, EXCL, NOWAIT, QUEUE, SEMAPHORES, using

_keys = itertools.count(0x5510)
GETVAL, GETNCNT, SETVAL, SEM_STAT = 12, 14, 16, 18
NOBODY = 65534


@pytest.fixture
def key() -> int:
    """A key that nobody uses."""
    return next(_keys)


def refused(action: Callable[[], object]) -> str:
    """Return the name of the error that `action` ends with."""
    with pytest.raises(Refused) as caught:
        action()
    return str(caught.value)


def test_a_key_is_one_queue(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2, 3) as [one, two, three]:
        assert refused(lambda: two.do("msgget", key, 0)) == "ENOENT"
        queue = one.do("msgget", key)
        assert [two.do("msgget", key), three.do("msgget", key, 0)] == [queue, queue]
        assert refused(lambda: two.do("msgget", key, CREAT | EXCL | 0o600)) == "EEXIST"
        assert refused(lambda: one.do("msgget", key, CREAT | EXCL | 0o600)) == "EEXIST"
        two.do("msgsnd", queue, 7, "from two")
        three.do("msgsnd", queue, 3, "x" * 8192)
        one.do("msgsnd", queue, 5, "")
        assert three.do("msgrcv", queue, 5) == [5, ""]
        assert one.do("msgrcv", queue) == [7, "from two"]
        assert refused(lambda: two.do("msgrcv", queue, 0, 0, 10)) == "E2BIG"
        assert two.do("msgrcv", queue, 0, 0o10000, 10) == [3, "x" * 10]
        assert refused(lambda: two.do("msgrcv", queue, 0, NOWAIT)) == "ENOMSG"
        assert refused(lambda: two.do("msgsnd", queue, 0, "no type")) == "EINVAL"
        one.do("rmid", QUEUE, queue)


def test_waiting_at_a_queue(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2, 3) as [one, two, three]:
        queue = one.do("msgget", key)
        assert [two.do("msgget", key), three.do("msgget", key)] == [queue, queue]
        waiting = two.begin("msgrcv", queue, -4)
        waiting.wait_blocked()
        third = three.begin("msgrcv", queue)
        third.wait_blocked()
        one.do("msgsnd", queue, 9, "for any")
        assert third.result() == [9, "for any"]
        three.do("msgsnd", queue, 4, "for two")
        assert waiting.result() == [4, "for two"]
        # It is full, and somebody makes room.
        for _ in range(2):
            one.do("msgsnd", queue, 1, "y" * 8192)
        full = three.begin("msgsnd", queue, 2, "z" * 8192)
        full.wait_blocked()
        assert refused(lambda: three.do("msgsnd", queue, 2, "z", NOWAIT)) == "EAGAIN"
        assert two.do("msgrcv", queue)[0] == 1
        assert full.result() == 0
        # Waiting is over when it is removed, wherever.
        waiting = two.begin("msgrcv", queue, 77)
        local = one.begin("msgrcv", queue, 77)
        waiting.wait_blocked()
        local.wait_blocked()
        three.do("rmid", QUEUE, queue)
        assert refused(waiting.result) == refused(local.result) == "EIDRM"
        assert refused(lambda: two.do("msgsnd", queue, 1, "")) == "EINVAL"
        assert refused(lambda: two.do("msgget", key, 0)) == "ENOENT"
        # The key is free, and the next who wants one has it at home.
        again = two.do("msgget", key)
        assert again != queue
        assert one.do("msgget", key) == again
        two.do("rmid", QUEUE, again)


def test_a_key_is_one_set_of_semaphores(trio: Cluster, key: int) -> None:
    with using(trio, 2, 1, 3) as [home, one, three]:
        given = home.do("semget", key, 3)
        assert one.do("semget", key, 2, 0) == given
        assert refused(lambda: one.do("semget", key, 4, 0)) == "EINVAL"
        assert one.do("setall", given, [1, 0, 5]) == 0
        assert home.do("getall", given, 3) == three.do("getall", given, 3) == [1, 0, 5]
        three.do("semctl", given, 1, SETVAL, 2)
        assert home.do("semctl", given, 1, GETVAL) == one.do("semctl", given, 1, GETVAL) == 2
        one.do("semop", given, [[0, -1, 0], [2, -5, 0]])
        assert refused(lambda: one.do("semop", given, [[0, -1, NOWAIT]])) == "EAGAIN"
        assert refused(lambda: three.do("semop", given, [[0, -1, 0]], 0.2)) == "EAGAIN"
        assert refused(lambda: three.do("semop", given, [[9, 1, 0]])) == "EFBIG"
        waiting = [actor.begin("semop", given, [[0, -1, 0]]) for actor in (home, one, three)]
        for one_of_them in waiting:
            one_of_them.wait_blocked()
        wait_until(lambda: home.do("semctl", given, 0, GETNCNT) == 3, "all three wait")
        assert one.do("semctl", given, 0, GETNCNT) == 3
        home.do("semop", given, [[0, 1, 0]])
        three.do("semop", given, [[0, 2, 0]])
        assert [doing.result() for doing in waiting] == [0, 0, 0]
        zero = three.begin("semop", given, [[1, 0, 0]])
        zero.wait_blocked()
        one.do("semop", given, [[1, -2, 0]])
        assert zero.result() == 0
        waiting = [actor.begin("semop", given, [[0, -1, 0]]) for actor in (home, one)]
        for one_of_them in waiting:
            one_of_them.wait_blocked()
        one.do("rmid", SEMAPHORES, given)
        assert [refused(doing.result) for doing in waiting] == ["EIDRM", "EIDRM"]


def test_who_may_what(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2) as [home, other], using(trio, 2) as [user]:
        user.do("become", NOBODY)
        queue, given = home.do("msgget", key), home.do("semget", key, 1)
        assert refused(lambda: user.do("msgget", key, 0o600)) == "EACCES"
        assert refused(lambda: user.do("msgsnd", queue, 1, "")) == "EACCES"
        assert refused(lambda: user.do("semop", given, [[0, 1, 0]])) == "EACCES"
        assert refused(lambda: user.do("rmid", QUEUE, queue)) == "EPERM"
        assert refused(lambda: user.do("stat", QUEUE, queue)) == "EACCES"
        other.do("set_mode", QUEUE, queue, 0o622)
        assert home.do("stat", QUEUE, queue)[:6] == [key, 0, 0, 0, 0, 0o622]
        user.do("msgsnd", queue, 1, "allowed")
        assert refused(lambda: user.do("msgrcv", queue)) == "EACCES"
        assert other.do("stat", QUEUE, queue)[5:] == [0o622, 1]
        own = user.do("msgget", key + 0x100)
        assert home.do("stat", QUEUE, own)[1:5] == [NOBODY] * 4
        assert home.do("msgget", key + 0x100, 0) == own
        home.do("rmid", QUEUE, own)
        home.do("rmid", QUEUE, queue)
        other.do("rmid", SEMAPHORES, given)


AGAIN = """
import ctypes, sys
libc, key = ctypes.CDLL(None), int(sys.argv[1])
for _ in range(30):
    queue = libc.msgget(key, 0o1600)
    assert queue >= 0 and libc.msgget(key, 0) == queue
    assert libc.msgctl(queue, 0, None) == 0 and libc.msgget(key, 0) == -1
print(libc.msgget(key, 0o1600))
"""


def test_a_key_is_given_back_in_time(trio: Cluster, key: int) -> None:
    """Removed and made at once it is known to all; here and elsewhere in turns."""
    for node, other in ((1, 2), (2, 3)):
        queue = int(trio.python(node, AGAIN, str(key)))
        with using(trio, other) as [actor]:
            assert actor.do("msgget", key, 0) == queue
            actor.do("rmid", QUEUE, queue)


def test_private_objects_have_no_key(trio: Cluster) -> None:
    with using(trio, 1, 2) as [one, two]:
        queues = [actor.do("msgget", 0) for actor in (one, two, one)]
        assert len(set(queues)) == 3
        two.do("msgsnd", queues[0], 1, "by its number")
        assert one.do("msgrcv", queues[0]) == [1, "by its number"]
        for queue in queues:
            two.do("rmid", QUEUE, queue)


@pytest.mark.parametrize("kind", [QUEUE, SEMAPHORES])
def test_waiting_is_interrupted(trio: Cluster, key: int, kind: str) -> None:
    with using(trio, 1, 2) as [home, other]:
        if kind == QUEUE:
            given = home.do("msgget", key)
            words: list[object] = ["msgrcv", given, 5]
        else:
            given = home.do("semget", key, 1)
            words = ["semop", given, [[0, -1, 0]]]
        for _ in range(3):
            waiting = other.begin(*words)  # type: ignore[arg-type]
            waiting.wait_blocked()
            other.interrupt(waiting)
            assert refused(waiting.result) == "EINTR"
        # Stopped, it takes nothing; going on, a queue's waiter waits on.
        waiting = other.begin(*words)  # type: ignore[arg-type]
        waiting.wait_blocked()
        trio.run(2, "kill", "-STOP", str(other.pid))
        wait_until(lambda: state_of(trio, other.pid) == "T", "it is stopped")
        trio.run(2, "kill", "-CONT", str(other.pid))
        if kind == QUEUE:
            waiting.wait_blocked()
            home.do("msgsnd", given, 5, "at last")
            assert waiting.result() == [5, "at last"]
        else:
            assert refused(waiting.result) == "EINTR"
        # Killed, it takes nothing.
        waiting = other.begin(*words)  # type: ignore[arg-type]
        waiting.wait_blocked()
        other.kill()
        if kind == QUEUE:
            home.do("msgsnd", given, 5, "for nobody")
            assert home.do("stat", kind, given)[6] == 1
        else:
            wait_until(lambda: home.do("semctl", given, 0, GETNCNT) == 0, "nobody waits")
        home.do("rmid", kind, given)


def state_of(cluster: Cluster, pid: int) -> str:
    """Return the letter of a process's state, as any node sees it."""
    return cluster.run(3, "ps", "-o", "s=", "-p", str(pid)).strip()


def test_undo_of_other_nodes_processes(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2, 3) as [home, two, three]:
        given = home.do("semget", key, 2)
        home.do("setall", given, [1, 0])
        two.lock(given).result()
        waiting = three.lock(given)
        waiting.wait_blocked()
        local = home.lock(given)
        local.wait_blocked()
        two.unlock(given)
        first, second = (three, home) if three_first(waiting, local) else (home, three)
        assert home.do("semctl", given, 0, GETVAL) == 0
        # It ends without having given it back.
        first.kill()
        (local if second is home else waiting).result()
        if second is home:
            home.unlock(given)
        wait_until(lambda: two.do("semctl", given, 0, GETVAL) <= 1, "it is given back once")
        two.do("rmid", SEMAPHORES, given)


def three_first(three: object, home: object) -> bool:
    """Tell who of two has got the lock."""
    wait_until(lambda: three.is_done or home.is_done, "one has it")  # type: ignore[attr-defined]
    return bool(three.is_done)  # type: ignore[attr-defined]


def test_all_nodes_see_and_remove_all(trio: Cluster, key: int) -> None:
    with using(trio, 1, 2, 3) as actors:
        queues = [actor.do("msgget", key + n) for n, actor in enumerate(actors)]
        sets = [actor.do("semget", key + n, 2) for n, actor in enumerate(actors)]
        memory = [actor.do("shmget", 0, 4096) for actor in actors]
        for node in (1, 3):
            shown = trio.run(node, "ipcs").split()
            assert {str(one) for one in queues + sets + memory} <= set(shown)
            assert f"0x{key:08x}" in shown
            listing = trio.run(node, "ls", "/proc/sysvipc")
            assert listing.split() == ["msg", "sem", "shm"]
        own = trio.run(2, "env", "SSI_PROC=local", "ipcs", "-q").split()
        assert {str(queues[1])} == {str(one) for one in queues} & set(own)
        assert "nsems = 2" in trio.run(2, "ipcs", "-s", "-i", str(sets[0]))
        trio.run(3, "ipcrm", "-Q", f"0x{key:x}", "-q", str(queues[1]), "-s", str(sets[0]))
        trio.run(1, "ipcrm", "-q", str(queues[2]), "-s", str(sets[1]), "-s", str(sets[2]))
        for one in memory:
            trio.run(2, "ipcrm", "-m", str(one))
        left = trio.run(2, "ipcs").split()
        assert not {str(one) for one in queues + sets + memory} & set(left)


def test_all_are_counted_and_removed_by_index(trio: Cluster, key: int) -> None:
    trio.run(1, "ipcrm", "--all")
    with using(trio, 1, 2, 3) as actors:
        for actor in actors:
            queue = actor.do("msgget", 0)
            actor.do("msgsnd", queue, 1, "twelve bytes")
            actor.do("semget", 0, 2)
            actor.do("shmget", 0, 4097)
        queue = actors[0].do("msgget", key, CREAT | 0o600)
        used = trio.run(2, "ipcs", "-u")
        for line in (
            "allocated queues = 4", "used headers = 3", "used space = 36 bytes",
            "used arrays = 3", "allocated semaphores = 6", "segments allocated 3",
            "pages allocated 6",
        ):  # fmt: skip
            assert line in used, used
        # Who may not read one is not told of it.
        actors[2].do("become", NOBODY)
        found = [actors[2].begin("semctl", index, 0, SEM_STAT) for index in range(4)]
        assert {str(refused(one.result)) for one in found[:3]} == {"EACCES"}
        assert refused(found[3].result) == "EINVAL"
        trio.run(2, "ipcrm", "--all")
        assert refused(lambda: actors[1].do("msgget", key, 0)) == "ENOENT"
        assert str(queue) not in trio.run(3, "ipcs").split()
        assert "allocated queues = 0" in trio.run(3, "ipcs", "-u")


MOVER = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
queue, room = int(sys.argv[1]), ctypes.create_string_buffer(128)
print(os.getpid(), file=open("/root/mover.pid", "w"))
while libc.msgrcv(queue, room, ctypes.c_size_t(100), ctypes.c_long(1), 0) > 0:
    answer = struct.pack("=q", 2) + open("/proc/self/where", "rb").read()
    libc.msgsnd(queue, answer, ctypes.c_size_t(len(answer) - 8), 0)
"""


def test_a_process_moves_while_it_waits(trio: Cluster, key: int) -> None:
    """Which node's the queue is makes no difference, before and behind the move."""
    with using(trio, 1) as [home]:
        queue = home.do("msgget", key)
        script = '(setsid python3 -c "$0" $1) >/dev/null 2>&1 </dev/null & '
        trio.run(2, "sh", "-c", script, MOVER, str(queue))
        for number, node in enumerate((2, 3, 1, 2)):
            if number:
                trio.run(3, "migrate", str(node), trio.run(3, "cat", "/root/mover.pid").strip())
            home.do("msgsnd", queue, 1, "where")
            assert home.do("msgrcv", queue, 2) == [2, f"{node}\n"]
        home.do("rmid", QUEUE, queue)
        trio.run(1, "rm", "/root/mover.pid")


HOLDER = """
import ctypes, os, struct, sys, time
ctypes.CDLL(None).semop(int(sys.argv[1]), struct.pack("=Hhh", 0, -1, 0o10000), 1)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_who_has_something_to_give_back_stays(trio: Cluster, key: int) -> None:
    with using(trio, 1) as [home]:
        given = home.do("semget", key, 1)
        home.do("setall", given, [2])
        for node in (1, 2):
            holder = trio.start_python(node, HOLDER, str(given))
            assert holder.stdout
            pid = holder.stdout.readline().decode().strip()
            assert "SEM_UNDO" in trio.run(3, "cat", f"/proc/{pid}/cantmove")
            assert "SEM_UNDO" in trio.try_run(3, "migrate", "3", pid).err
            trio.run(3, "kill", pid)
            holder.wait()
        wait_until(lambda: home.do("semctl", given, 0, GETVAL) == 2, "both have given back")
        home.do("rmid", SEMAPHORES, given)
