"""POSIX message queues: same name, same queue, on every node."""

from __future__ import annotations

import itertools
import select
import signal
import time
from collections.abc import Callable

import pytest

from support.clusters import Cluster
from support.fifos import Refused
from support.queues import CREAT, EXCL, NONBLOCK, RDONLY, RDWR, WRITE, using

_names = (f"/queue{n}" for n in itertools.count())
NOBODY = 65534
MAKE = CREAT | RDWR
FROM_QUEUE = -3


@pytest.fixture
def name() -> str:
    """A name that nobody uses."""
    return next(_names)


def refused(action: Callable[[], object]) -> str:
    """Return the name of the error that `action` ends with."""
    with pytest.raises(Refused) as caught:
        action()
    return str(caught.value)


def test_a_name_is_one_queue(trio: Cluster, name: str) -> None:
    with using(trio, 1, 2, 3) as [one, two, three]:
        assert refused(lambda: two.do("open", name)) == "ENOENT"
        first = one.do("open", name, MAKE, 0o600, 4, 100)
        # Others have what it was made with, not what they say.
        second, third = two.do("open", name, MAKE, 0o666, 9, 999), three.do("open", name)
        for actor in (one, two, three):
            assert refused(lambda who=actor: who.do("open", name, MAKE | EXCL)) == "EEXIST"  # type: ignore[misc]
        assert two.do("getattr", second) == one.do("getattr", first) == [0, 4, 100, 0]
        assert two.do("about", second) == [0o600, 0, 0]
        # By priority, and in order.
        two.do("send", second, "from two", 1)
        three.do("send", third, "from three", 7)
        one.do("send", first, "", 1)
        two.do("send", second, "x" * 100, 32767)
        assert [actor.do("getattr", fd)[3] for actor, fd in ((one, first), (three, third))] == [
            4,
            4,
        ]
        assert refused(lambda: two.do("send", second, "full", 0, 0.1)) == "ETIMEDOUT"
        assert one.do("receive", first) == [32767, "x" * 100]
        assert three.do("receive", third) == [7, "from three"]
        assert two.do("receive", second) == [1, "from two"]
        assert three.do("receive", third, 5) == [1, ""]
        # The kernel's own answers, by whichever descriptor.
        for actor, fd in ((one, first), (two, second)):
            assert refused(lambda a=actor, f=fd: a.do("send", f, "y" * 101)) == "EMSGSIZE"  # type: ignore[misc]
            assert refused(lambda a=actor, f=fd: a.do("receive", f, None, 99)) == "EMSGSIZE"  # type: ignore[misc]
            assert refused(lambda a=actor, f=fd: a.do("send", f, "", 32768)) == "EINVAL"  # type: ignore[misc]
            assert refused(lambda a=actor, f=fd: a.do("receive", f, 0.1)) == "ETIMEDOUT"  # type: ignore[misc]
            assert refused(lambda a=actor, f=fd: a.do("receive", f, -9)) == "ETIMEDOUT"  # type: ignore[misc]
            actor.do("set_nonblock", fd, True)
            assert refused(lambda a=actor, f=fd: a.do("receive", f)) == "EAGAIN"  # type: ignore[misc]
            assert actor.do("getattr", fd) == [NONBLOCK, 4, 100, 0]
            actor.do("set_nonblock", fd, False)
        one.do("unlink", name)


def test_a_name_is_removed(trio: Cluster, name: str) -> None:
    """The queue lives until the last one closes it, and the name is free for another."""
    with using(trio, 1, 2, 3) as [one, two, three]:
        first = one.do("open", name, MAKE)
        second, third = two.do("open", name), three.do("open", name)
        three.do("unlink", name)
        for actor in (one, two, three):
            assert refused(lambda who=actor: who.do("open", name)) == "ENOENT"  # type: ignore[misc]
            assert refused(lambda who=actor: who.do("unlink", name)) == "ENOENT"  # type: ignore[misc]
        again = three.do("open", name, MAKE | EXCL)
        one.do("close", first)
        assert refused(lambda: one.do("send", first, "")) == "EBADF"
        two.do("send", second, "still there")
        assert three.do("receive", third) == [0, "still there"]
        assert three.do("getattr", again) == [0, 8, 1024, 0]
        other = one.do("open", name, WRITE)
        one.do("send", other, "the new one")
        assert refused(lambda: one.do("receive", other)) == "EBADF"
        assert three.do("receive", again) == [0, "the new one"]
        three.do("unlink", name)
        assert refused(lambda: one.do("open", name)) == "ENOENT"


def test_waiting_and_being_interrupted(trio: Cluster, name: str) -> None:
    with using(trio, 1, 2, 3) as [one, two, three]:
        queue = one.do("open", name, MAKE, 0o600, 1)
        ours, theirs = two.do("open", name), three.do("open", name)
        waiting = two.begin("receive", ours)
        waiting.wait_blocked()
        three.do("send", theirs, "for two")
        assert waiting.result() == [0, "for two"]
        waiting = one.begin("receive", queue)
        waiting.wait_blocked()
        two.do("send", ours, "for one", 5)
        assert waiting.result() == [5, "for one"]
        one.do("send", queue, "full")
        full = three.begin("send", theirs, "waits", 1)
        full.wait_blocked()
        assert two.do("receive", ours) == [0, "full"]
        assert full.result() == 0
        assert two.do("receive", ours, 9.0) == [1, "waits"]
        # A signal's handler ends it, and nobody gets less for it.
        for call in (("receive", ours), ("receive", ours, 60)):
            waiting = two.begin(*call)
            waiting.wait_blocked()
            two.interrupt(waiting)
            assert refused(waiting.result) == "EINTR"
        begun = time.monotonic()
        assert refused(lambda: two.do("receive", ours, 0.5)) == "ETIMEDOUT"
        assert 0.4 < time.monotonic() - begun < 20
        one.do("send", queue, "there")
        assert two.do("receive", ours) == [0, "there"]
        # Who waits is killed, and takes nothing with it.
        with using(trio, 2) as [doomed]:
            its = doomed.do("open", name)
            doomed.begin("receive", its).wait_blocked()
            doomed.kill()
        one.do("send", queue, "not for the dead")
        assert two.do("receive", ours, 20) == [0, "not for the dead"]
        one.do("unlink", name)


def test_poll(trio: Cluster, name: str) -> None:
    with using(trio, 1, 2) as [home, other]:
        queue, ours = home.do("open", name, MAKE, 0o600, 1), other.do("open", name)
        both = select.POLLIN | select.POLLOUT
        assert other.do("poll", ours, both, 0) == select.POLLOUT
        waiting = other.begin("poll", ours, select.POLLIN, 60000)
        waiting.wait_blocked()
        home.do("send", queue, "come")
        assert waiting.result() == select.POLLIN
        assert other.do("poll", ours, both, 0) == select.POLLIN
        waiting = other.begin("poll", ours, select.POLLOUT, 60000)
        waiting.wait_blocked()
        assert home.do("receive", queue) == [0, "come"]
        assert waiting.result() == select.POLLOUT
        home.do("unlink", name)


def test_who_may_what(trio: Cluster, name: str) -> None:
    with using(trio, 1, 2) as [home, other], using(trio, 2) as [user]:
        user.do("become", NOBODY)
        queue = home.do("open", name, MAKE, 0o600)
        assert refused(lambda: user.do("open", name)) == "EACCES"
        assert refused(lambda: user.do("open", name, MAKE)) == "EACCES"
        assert refused(lambda: user.do("unlink", name)) == "EACCES"
        home.do("chmod", queue, 0o604)
        reading = user.do("open", name, RDONLY)
        assert user.do("about", reading) == [0o604, 0, 0]
        assert refused(lambda: user.do("open", name, RDWR)) == "EACCES"
        home.do("send", queue, "to read")
        assert user.do("receive", reading) == [0, "to read"]
        assert refused(lambda: user.do("send", reading, "")) == "EBADF"
        own = user.do("open", name + "user", MAKE, 0o600)
        seen = home.do("open", name + "user")
        assert home.do("about", seen) == [0o600, NOBODY, NOBODY]
        user.do("send", own, "root may")
        assert home.do("receive", seen) == [0, "root may"]
        home.do("unlink", name + "user")
        other.do("unlink", name)
        # What cannot be made is nowhere: the name is free for others.
        assert refused(lambda: user.do("open", name, MAKE, 0o600, 10**6)) == "EINVAL"
        home.do("open", name, MAKE | EXCL)
        home.do("unlink", name)


def test_folder(trio: Cluster, name: str) -> None:
    with using(trio, 1, 2) as [one, two], using(trio, 2) as [user]:
        user.do("become", NOBODY)
        queue, other = one.do("open", name, MAKE, 0o640), two.do("open", name + "b", MAKE)
        one.do("send", queue, "12345")
        both = {name[1:], name[1:] + "b"}
        for actor in (one, two, user):
            assert both <= set(actor.do("list"))
            assert actor.do("stat", name[1:]) == [0o640, 0]
        for actor in (one, two):
            assert actor.do("read", name[1:]).split()[0] == "QSIZE:5"
        assert refused(lambda: user.do("read", name[1:])) == "EACCES"
        for each in both:
            assert refused(lambda n=each: user.do("remove", n)) in {"EACCES", "EPERM"}  # type: ignore[misc]
        two.do("remove", name[1:])
        two.do("remove", name[1:] + "b")
        assert refused(lambda: one.do("open", name)) == "ENOENT"
        assert refused(lambda: one.do("open", name + "b")) == "ENOENT"
        assert not both & set(one.do("list"))
        two.do("close", other)


def test_children_and_ends(trio: Cluster, name: str) -> None:
    with using(trio, 1) as [home], using(trio, 2) as [other]:
        queue, ours = home.do("open", name, MAKE), other.do("open", name)
        assert other.do("share", ours, "from a child") == 0
        assert home.do("receive", queue) == [1, "from a child"]
        other.do("send", ours, "from its parent")
        home.do("unlink", name)
        home.do("close", queue)
        # It is only the other's by now, and gone with it.
        assert other.do("getattr", ours)[3] == 1
        other.kill()
        assert refused(lambda: home.do("open", name)) == "ENOENT"
        # Names are any bytes, and long ones, too.
        strange = "/ä%\n " + "q" * 240
        made = home.do("open", strange, MAKE)
        with using(trio, 3) as [third]:
            third.do("send", third.do("open", strange), "strange")
            assert home.do("receive", made) == [0, "strange"]
            third.do("unlink", strange)
            assert refused(lambda: third.do("open", "/" + "q" * 256)) == "ENAMETOOLONG"
            # More than fits between nodes.
            home.do("open", name, MAKE, 0o600, 2, 40000)
            assert refused(lambda: third.do("open", name)) == "EREMOTE"
            third.do("unlink", name)


def test_notification(trio: Cluster, name: str) -> None:
    with using(trio, 1, 2, 3) as [home, other, third]:
        queue = home.do("open", name, MAKE)
        ours, theirs = other.do("open", name), third.do("open", name)
        other.do("notify", ours)
        assert refused(lambda: home.do("notify", queue)) == "EBUSY"
        assert refused(lambda: third.do("notify", theirs)) == "EBUSY"
        # Other descriptors of the queue may be closed.
        third.do("close", theirs)
        home.do("send", queue, "first")
        assert other.do("wait_signal") == [signal.SIGUSR2, FROM_QUEUE]
        # Once, and only if it was empty.
        other.do("notify", ours, 2, 0, 77)
        home.do("send", queue, "second")
        assert [other.do("receive", ours)[1] for _ in range(2)] == ["first", "second"]
        home.do("send", queue, "third")
        assert other.do("wait_told") == ["thread", 77]
        # It is taken back: by word, by closing, and by ending.
        other.do("notify", ours)
        other.do("ignore", ours)
        home.do("notify", queue)
        assert refused(lambda: other.do("notify", ours)) == "EBUSY"
        home.do("ignore", queue)
        other.do("notify", ours)
        other.do("close", other.do("open", name))
        other.do("close", ours)
        home.do("notify", queue)
        home.do("ignore", queue)
        with using(trio, 3) as [doomed]:
            doomed.do("notify", doomed.do("open", name), 2)
            assert refused(lambda: home.do("notify", queue)) == "EBUSY"
        home.do("notify", queue)
        home.do("unlink", name)
