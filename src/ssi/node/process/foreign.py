"""Calls that name a process of another node: the node where it is answers them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Awaitable, Callable, Mapping

from ssi.common import wire
from ssi.common.errors import NodeLost
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call, Handler
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher
from ssi.node.pids import origin_of
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID, read_caller, read_memory
from ssi.node.process.jobcontrol import list_group, list_people
from ssi.node.process.listener import GO_ON, HeldCall, Judge, Verdict
from ssi.node.process.places import Places
from ssi.node.process.signals import INFO_SIZE, MAX_SIGNAL, Sending, send
from ssi.node.processes import MAX_BEGUN, start_of

REMEMBERED = 1000
TAKEN: Message = {"result": 0, "error": 0, "node": 0}
NOBODY: Message = {"result": 0, "error": errno.ESRCH, "node": 0}

# x86-64
KILL, TKILL, TGKILL, SIGQUEUE, TGSIGQUEUE = 62, 200, 234, 129, 297
GETPGID, GETSID, GETPRIORITY, SETPRIORITY = 121, 124, 140, 141

PRIO_PROCESS = 0


def _is_leader(pid: int) -> int:
    """Return 0 if it is a process; raises OSError as pidfd_open does if it is another thread."""
    if read_caller(pid).pid != pid:
        raise OSError(errno.EINVAL, "a thread is no process")
    return 0


QUESTIONS: Mapping[str, Callable[[int], int]] = {
    "pgid": os.getpgid,
    "sid": os.getsid,
    "leads": _is_leader,
    # As the system call has it: 40 (nice -20) to 1 (nice 19).
    "priority": lambda pid: 20 - os.getpriority(os.PRIO_PROCESS, pid),
}


class Foreign:
    """Judges held calls, and answers those of other nodes."""

    def __init__(
        self, cluster: Cluster, asking: Asking, launcher: Launcher, places: Places, ics: Ics
    ) -> None:
        self._cluster = cluster
        self._asking = asking
        self._launcher = launcher
        self._places = places
        self._sent: dict[str, Message] = {}
        """What came of signals: none is sent twice."""
        self.judges: dict[int, Judge] = {
            KILL: self._kill, TKILL: self._tkill, TGKILL: self._tgkill, SIGQUEUE: self._sigqueue,
            TGSIGQUEUE: self._tgsigqueue, GETPGID: lambda call: self._ask_about(call, 0, "pgid"),
            GETSID: lambda call: self._ask_about(call, 0, "sid"),
            GETPRIORITY: self._getpriority, SETPRIORITY: self._setpriority,
        }  # fmt: skip
        """What judges a call, by its number."""
        ics.serve("signal", self.pass_on(self._answer_signal))
        ics.serve("signal-thread", self.pass_on(self._answer_signal_thread))
        ics.serve("signal-group", self._answer_signal_group)
        ics.serve("signal-all", self._answer_signal_all)
        ics.serve("about", self.pass_on(self._answer_about))
        ics.serve("renice", self.pass_on(self._answer_renice))

    async def judge(self, call: HeldCall) -> Verdict:
        """Return what becomes of `call`."""
        judge = self.judges.get(call.number)
        if judge is None:
            return GO_ON
        try:
            return await judge(call)
        except ProcessLookupError:
            return Verdict(error=errno.ESRCH)
        except OSError as error:
            return Verdict(error=error.errno or errno.EIO)

    async def find(self, pid: int) -> int | None:
        """Return the node on which process `pid` runs; None if there is none.

        One of those that each node has for itself is on this one.
        """
        answer = await self.ask_where(pid, "about", {"pid": pid, "what": "pgid"})
        return None if answer["error"] else wire.get_int(answer, "node", 1, MAX_NODE)

    async def ask_where(self, pid: int, name: str, body: Mapping[str, object]) -> Message:
        """Ask the node that knows where `pid` is; all, if that one is dead."""
        node = self._places.find(pid)
        if self._asking.is_alive(node):
            with contextlib.suppress(NodeLost):
                return await self._asking.ask(node, name, body)
        answer = NOBODY
        for one in sorted(self._cluster.known.view.alive) if self._cluster.known else []:
            with contextlib.suppress(NodeLost):
                answer = await self._asking.ask(one, name, body)
            if answer["error"] != errno.ESRCH:
                break
        return answer

    async def _ask(self, pid: int, name: str, body: Mapping[str, object]) -> Verdict:
        """Return what became of a call that names process `pid`."""
        return _read(await self.ask_where(pid, name, body))

    async def _ask_node(self, node: int, name: str, body: Mapping[str, object]) -> Verdict:
        """Ask `node` until it answers, or is dead."""
        try:
            return _read(await self._asking.ask(node, name, body))
        except NodeLost:
            return Verdict(error=errno.ESRCH)

    def pass_on(self, answer: Callable[[Call], Awaitable[Message]]) -> Handler:
        """Return what answers a question about a process, or asks the node where its body is."""

        async def pass_on(call: Call) -> Message:
            pid = wire.get_int(call.body, "pid", 1, MAX_PID)
            node = self._places.find(pid)
            if self._is_another(call, pid):
                return NOBODY
            if node != self._places.node and self._places.is_ghost(pid):
                try:
                    there = await self._asking.ask(node, call.name, call.body)
                except NodeLost:
                    there = NOBODY
                # Until its parent has heard of its end it is a zombie, which takes signals.
                gone = there["error"] == errno.ESRCH
                return TAKEN if gone and call.name == "signal" else there
            if self._places.is_placeholder(pid):
                return NOBODY
            return {**await answer(call), "node": self._places.node}

        return pass_on

    def _is_another(self, call: Call, pid: int) -> bool:
        """Tell whether the process that is meant has ended, and its PID is another's."""
        begun = wire.get_int(call.body, "begun", 0, MAX_BEGUN) if "begun" in call.body else 0
        if not begun or origin_of(pid) != self._places.node:
            return False
        with contextlib.suppress(OSError):
            return start_of(pid) != begun
        return True

    def is_here(self, call: HeldCall, pid: int) -> bool:
        """Tell whether the kernel's own verdict is right: it is the caller, or runs here.

        CRIU means what it restores here, though the process still runs where it comes from.
        """
        if self._places.find(pid) == self._places.node:
            return True
        # Only these have a PID of another node, and are processes of this one.
        arriving = self._places.is_arriving(pid)
        if (arriving or self._places.is_placeholder(pid)) and pid == read_caller(call.thread).pid:
            return True
        # A daemon that has just come knows nothing of what it restores.
        return is_restorer(call.thread)

    # -- signals ---------------------------------------------------------------------------------

    async def _kill(self, call: HeldCall) -> Verdict:
        pid, number = call.int_at(0), call.int_at(1)
        if pid > 0:
            return await self.send(call, pid, 0, number)
        if pid == -1:
            return await self._kill_all(call, number)
        return await self._kill_group(call, -pid or os.getpgid(call.thread), number)

    async def _tkill(self, call: HeldCall) -> Verdict:
        thread, number = call.int_at(0), call.int_at(1)
        if thread < 0 or thread == call.thread or self._places.find(thread) == self._places.node:
            return GO_ON
        if not 0 <= number <= MAX_SIGNAL:
            return Verdict(error=errno.EINVAL)
        sending = Sending(thread, thread, number, b"", read_caller(call.thread))
        return await self._ask(thread, "signal-thread", self._render(call, sending))

    async def _tgkill(self, call: HeldCall) -> Verdict:
        pid, thread, number = (call.int_at(index) for index in range(3))
        return await self.send(call, pid, thread, number)

    async def _sigqueue(self, call: HeldCall) -> Verdict:
        info = read_memory(call.thread, call.arguments[2], INFO_SIZE)
        return await self.send(call, call.int_at(0), 0, call.int_at(1), info)

    async def _tgsigqueue(self, call: HeldCall) -> Verdict:
        info = read_memory(call.thread, call.arguments[3], INFO_SIZE)
        return await self.send(call, call.int_at(0), call.int_at(1), call.int_at(2), info)

    async def send(
        self, call: HeldCall, pid: int, thread: int, number: int, info: bytes = b"", begun: int = 0
    ) -> Verdict:
        """Send a signal to a process, or one of its threads, wherever it is.

        It is only for one that began at `begun` by the clock of the node it comes from, if given.
        """
        if pid < 0:
            return Verdict(error=errno.EINVAL if thread else errno.ESRCH)
        if self.is_here(call, pid):
            return GO_ON
        if not 0 <= number <= MAX_SIGNAL:
            return Verdict(error=errno.EINVAL)
        if info and is_forged(info):
            return Verdict(error=errno.EPERM)
        sending = Sending(pid, thread, number, info, read_caller(call.thread))
        return await self._ask(pid, "signal", {**self._render(call, sending), "begun": begun})

    def _render(self, call: HeldCall, sending: Sending) -> Message:
        return {
            **sending.dump(), "session": os.getsid(call.thread),
            "once": f"{self._cluster.boot} {call.id}",
        }  # fmt: skip

    async def _answer_signal(self, call: Call) -> Message:
        sending = Sending.load(call.body)
        session = wire.get_int(call.body, "session", 0, MAX_PID)
        return self._once(call, lambda: send(sending, session=session))

    async def _answer_signal_thread(self, call: Call) -> Message:
        """Only here is known of which process it is a thread."""
        sending = Sending.load(call.body)
        session = wire.get_int(call.body, "session", 0, MAX_PID)

        def to_thread() -> None:
            pid = read_caller(sending.thread).pid
            send(dataclasses.replace(sending, pid=pid), session=session)

        return self._once(call, to_thread)

    def _once(self, call: Call, action: Callable[[], None]) -> Message:
        """Do it, unless the caller's daemon was killed before it had our answer, and asks again."""
        once = wire.get_text(call.body, "once")
        if once not in self._sent:
            self._sent[once] = _render(action)
            while len(self._sent) > REMEMBERED:
                self._sent.pop(next(iter(self._sent)))
        return self._sent[once]

    async def _kill_group(self, call: HeldCall, group: int, number: int) -> Verdict:
        """Begin where the group does: from there its members are found."""
        origin = origin_of(group)
        if origin in {0, self._places.node} and not self._places.is_spread(group):
            return GO_ON
        if not 0 <= number <= MAX_SIGNAL:
            return Verdict(error=errno.EINVAL)
        sending = Sending(group, 0, number, b"", read_caller(call.thread))
        body = {**self._render(call, sending), "visited": []}
        if self._asking.is_alive(origin):
            return await self._ask_node(origin, "signal-group", body)
        nodes = self._cluster.known.view.alive if self._cluster.known else frozenset[int]()
        body["visited"] = sorted(nodes)
        verdicts = [await self._ask_node(node, "signal-group", body) for node in sorted(nodes)]
        return next((v for v in verdicts if not v.error), Verdict(error=errno.ESRCH))

    async def _answer_signal_group(self, call: Call) -> Message:
        sending = Sending.load(call.body)
        session = wire.get_int(call.body, "session", 0, MAX_PID)
        members = list_group(sending.pid)
        real = [pid for pid in members if not self._places.is_placeholder(pid)]
        answers = [self._once(call, lambda: _send_to(real, sending, session))]
        visited = {self._places.node, *wire.get_ints(call.body, "visited", 1, MAX_NODE)}
        nodes = self._places.nodes_of_group(sending.pid, members) - visited
        body = {**call.body, "visited": sorted(visited | nodes)}
        for node in nodes:
            with contextlib.suppress(NodeLost):
                answers.append(await self._asking.ask(node, "signal-group", body))
        if all(answer["error"] == errno.ESRCH for answer in answers) and len(real) < len(members):
            return TAKEN  # a zombie
        return next(
            (answer for answer in answers if not answer["error"]),
            max(answers, key=lambda answer: answer["error"] == errno.EPERM),
        )

    async def _kill_all(self, call: HeldCall, number: int) -> Verdict:
        """kill(-1): every process that he may signal, on all nodes, but none of the nodes' own."""
        if not 0 <= number <= MAX_SIGNAL:
            return Verdict(error=errno.EINVAL)
        state = self._cluster.known
        others = (state.view.alive if state else frozenset()) - {self._cluster.node}
        sending = Sending(1, 0, number, b"", read_caller(call.thread))
        verdicts = [
            await self._ask_node(node, "signal-all", {**sending.dump(), "session": 0})
            for node in sorted(others)
        ]
        own = _render(lambda: _send_to(self._list_all(sending.caller.pid), sending, 0))
        verdicts.append(Verdict(error=int(own["error"])))
        return next((v for v in verdicts if not v.error), verdicts[-1])

    async def _answer_signal_all(self, call: Call) -> Message:
        sending = Sending.load(call.body)
        return _render(lambda: _send_to(self._list_all(0), sending, 0))

    def _list_all(self, caller: int) -> list[int]:
        spared = {caller, self._launcher.pid}
        return [
            pid for pid in list_people()
            if pid not in spared and not self._places.is_placeholder(pid)
        ]  # fmt: skip

    # -- questions -------------------------------------------------------------------------------

    async def _ask_about(self, call: HeldCall, index: int, what: str) -> Verdict:
        pid = call.int_at(index)
        if pid < 0:
            return Verdict(error=errno.ESRCH)
        if self.is_here(call, pid):
            return GO_ON
        return await self._ask(pid, "about", {"pid": pid, "what": what})

    async def _answer_about(self, call: Call) -> Message:
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        question = QUESTIONS[wire.get_word(call.body, "what", list(QUESTIONS))]
        return _render(lambda: question(pid))

    async def _getpriority(self, call: HeldCall) -> Verdict:
        # A group's or a user's processes are looked for here only.
        if call.int_at(0) != PRIO_PROCESS:
            return GO_ON
        return await self._ask_about(call, 1, "priority")

    async def _setpriority(self, call: HeldCall) -> Verdict:
        which, pid, nice = (call.int_at(index) for index in range(3))
        if which != PRIO_PROCESS or pid < 0 or self.is_here(call, pid):
            return GO_ON
        caller = read_caller(call.thread)
        body = {"pid": pid, "nice": max(-20, min(19, nice)), "caller": caller.dump()}
        return await self._ask(pid, "renice", body)

    async def _answer_renice(self, call: Call) -> Message:
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        nice = wire.get_int(call.body, "nice", -20, 19)
        uid = wire.get_ints(wire.get_object(call.body, "caller"), "uids", 0, 2**32)[1]

        def renice() -> None:
            owner = read_caller(pid)
            if uid and uid not in owner.uids[:2]:
                raise PermissionError(errno.EPERM, "not allowed")
            if uid and nice < os.getpriority(os.PRIO_PROCESS, pid):
                raise PermissionError(errno.EACCES, "not allowed")
            os.setpriority(os.PRIO_PROCESS, pid, nice)

        return _render(renice)


def is_restorer(thread: int) -> bool:
    """Tell whether a thread is CRIU's, and root's as that of a move is."""
    try:
        return os.readlink(f"/proc/{thread}/exe").endswith("/criu") and (
            read_caller(thread).uids == (0, 0, 0)
        )
    except OSError:
        return False


def _read(answer: Message) -> Verdict:
    return Verdict(
        wire.get_int(answer, "result", -(2**31), 2**31), wire.get_int(answer, "error", 0, 4095)
    )


def is_forged(info: bytes) -> bool:
    """Tell whether a siginfo claims to be the kernel's or kill's, which its sender may not."""
    code = int.from_bytes(info[8:12], "little", signed=True)
    return code >= 0 or code == -6  # SI_TKILL


def _render(action: Callable[[], int | None]) -> Message:
    """Return what `action` returns or raises, as an answer."""
    try:
        return {"result": action() or 0, "error": 0}
    except ProcessLookupError:
        return {"result": 0, "error": errno.ESRCH}
    except OSError as error:
        return {"result": 0, "error": error.errno or errno.EIO}


def _send_to(pids: list[int], sending: Sending, session: int) -> None:
    """Send to all of `pids`; as the kernel: fine if one got it, else the last error."""
    failed: OSError = ProcessLookupError(errno.ESRCH, "nobody is there")
    sent = False
    for pid in pids:
        one = Sending(pid, 0, sending.number, sending.info, sending.caller)
        try:
            send(one, session=session)
            sent = True
        except OSError as error:
            failed = error
    if not sent:
        raise failed
