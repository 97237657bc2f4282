"""Internode communication: calls do what they should, and what is wrong harms nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssi.common.errors import NodeLost, ProtocolError, SsiError, TimedOut
from ssi.common.wire import MAX_LINE, Message
from ssi.node.ics import gate
from ssi.node.ics.asking import MAX_CALLS
from ssi.node.ics.ics import Call, Stream
from ssi.node.ics.parts import WINDOW
from ssi.node.state.view import Node, NodeState, View
from support.ics import WITHIN_S, Several, Stranger, running, stranger, view_of

DEADLINE_S = 30.0


def play(coroutine: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await coroutine

    asyncio.run(run())


async def echo(call: Call) -> Message:
    """Send each part back; answer how many there were."""
    count = 0
    while (part := await call.receive()) is not None:
        await call.send(part)
        count += 1
    return {"from": call.node, "count": count, **call.body}


async def fail(_: Call) -> Message:
    raise TimedOut("too late", hint="be quick")


async def stumble(_: Call) -> Message:
    raise ValueError("a bug")


class Hanging:
    """A handler that waits until it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.count = 0

    async def __call__(self, _: Call) -> Message:
        self.count += 1
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.count -= 1
            self.cancelled.set()
        return {}


async def check_well(several: Several, asker: int = 2, asked: int = 1) -> None:
    assert await several.ics[asker].ask(asked, "ping", within_s=WITHIN_S) == {}


@pytest.mark.parametrize("asked", [1, 2])  # itself, another
def test_questions_are_answered(asked: int) -> None:
    async def run() -> None:
        async with running(2) as several:
            several.ics[asked].serve("echo", echo)
            answer = await several.ics[1].ask(asked, "echo", {"a": [1, "ä"]}, within_s=WITHIN_S)
            assert answer == {"from": 1, "count": 0, "a": [1, "ä"]}

    play(run())


@pytest.mark.parametrize("asked", [1, 2])
def test_errors_travel(asked: int, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with running(2) as several:
            several.ics[asked].serve("fail", fail)
            several.ics[asked].serve("stumble", stumble)
            several.ics[asked].serve("echo", echo)
            ask = several.ics[1].ask
            with pytest.raises(TimedOut, match="too late") as caught:
                await ask(asked, "fail", within_s=WITHIN_S)
            assert caught.value.hint == "be quick"
            with pytest.raises(SsiError, match="see its log"):
                await ask(asked, "stumble", within_s=WITHIN_S)
            with pytest.raises(SsiError, match="knows no 'nothing'"):
                await ask(asked, "nothing", within_s=WITHIN_S)
            with pytest.raises(ProtocolError, match="are the most"):
                await ask(asked, "echo", {"long": "x" * MAX_LINE}, within_s=WITHIN_S)
            await check_well(several, 1, asked)

    play(run())
    assert "ValueError: a bug" in caplog.text


@pytest.mark.parametrize("asked", [1, 2])
def test_parts_go_both_ways_however_many(asked: int) -> None:
    parts = [{"number": n, "data": "x" * (n % 50_000)} for n in range(0, 400_000, 7919)]
    assert sum(len(str(part)) for part in parts) > 5 * WINDOW

    async def run() -> None:
        async with running(2) as several:
            several.ics[asked].serve("echo", echo)
            async with several.ics[1].call(asked, "echo", {"k": "v"}) as stream:
                async with asyncio.TaskGroup() as group:
                    back = group.create_task(receive_all(stream))
                    for part in parts:
                        await stream.send(part)
                    stream.finish()
                assert back.result() == parts
                assert await stream.answer() == {"from": 1, "count": len(parts), "k": "v"}

    async def receive_all(stream: Stream) -> list[Message]:
        found = []
        while (part := await stream.receive()) is not None:
            found.append(part)
        return found

    play(run())


@pytest.mark.parametrize("asked", [1, 2])
def test_a_call_that_nobody_reads_stops_alone(asked: int) -> None:
    async def run() -> None:
        sent = 0

        async def flood(call: Call) -> Message:
            nonlocal sent
            while True:
                await call.send({"data": "x" * 10_000})
                sent += 10_000

        async with running(2) as several:
            several.ics[asked].serve("flood", flood)
            several.ics[asked].serve("hang", Hanging())
            async with several.ics[1].call(asked, "flood"), several.ics[1].call(asked, "hang") as s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        while True:
                            await s.send({"data": "x" * 10_000})
                await check_well(several, 1, asked)
                assert sent < WINDOW

    play(run())


@pytest.mark.parametrize("asked", [1, 2])
def test_who_leaves_cancels_the_handler(asked: int) -> None:
    async def run() -> None:
        async with running(2) as several:
            hanging = Hanging()
            several.ics[asked].serve("hang", hanging)
            async with several.ics[1].call(asked, "hang"):
                await hanging.begun.wait()
            await hanging.cancelled.wait()
            with pytest.raises(TimedOut, match="did not answer within"):
                await several.ics[1].ask(asked, "hang", within_s=0.05)
            await check_well(several, 1, asked)

    play(run())


def test_more_calls_than_may_be_at_a_time_wait() -> None:
    async def run() -> None:
        async with running(2) as several:
            hanging = Hanging()
            several.ics[1].serve("hang", hanging)
            ask = several.ics[2].ask
            hangs = [
                asyncio.create_task(ask(1, "hang", within_s=WITHIN_S)) for _ in range(MAX_CALLS)
            ]
            while hanging.count < MAX_CALLS:  # noqa: ASYNC110 - for each of them
                await asyncio.sleep(0.01)
            with pytest.raises(TimedOut):
                await ask(1, "ping", within_s=0.1)
            assert hanging.count == MAX_CALLS
            for hang in hangs:
                hang.cancel()
            await check_well(several)
            assert hanging.count == 0
            await asyncio.gather(*hangs, return_exceptions=True)

    play(run())


@pytest.mark.parametrize("told", [1, 2])
def test_events_arrive_in_order_and_one_by_one(told: int, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        heard: list[int] = []
        ended = asyncio.Event()

        async def hear(call: Call) -> Message:
            await asyncio.sleep(0)
            heard.append(call.body["number"])
            if len(heard) == 300:
                ended.set()
            return {}

        async with running(2) as several:
            several.ics[told].serve("hear", hear)
            several.ics[told].serve("fail", fail)
            await several.ics[1].tell(told, "fail")
            await several.ics[1].tell(told, "nothing")
            for number in range(300):
                await several.ics[1].tell(told, "hear", {"number": number, "pad": "x" * 2000})
            await ended.wait()
            assert heard == list(range(300))

    play(run())
    assert "too late" in caplog.text
    assert "knows no 'nothing'" in caplog.text


def test_the_death_of_a_node_ends_calls_to_it() -> None:
    async def run() -> None:
        async with running(3) as several:
            hanging = Hanging()
            several.ics[2].serve("hang", hanging)
            asking = asyncio.create_task(several.ics[1].ask(2, "hang", within_s=WITHIN_S))
            await hanging.begun.wait()
            several.ics[1].set_members(view_of(1, 3))
            with pytest.raises(NodeLost, match="node2 was lost"):
                await asking
            with pytest.raises(NodeLost, match="node2 is not up"):
                await several.ics[1].ask(2, "ping", within_s=WITHIN_S)
            await hanging.cancelled.wait()
            # The other way: who has left the view is no longer heard.
            hanging.begun.clear()
            several.ics[3].serve("hang", hanging)
            asking = asyncio.create_task(several.ics[2].ask(3, "hang", within_s=WITHIN_S))
            await hanging.begun.wait()
            several.ics[3].set_members(view_of(1, 3))
            with pytest.raises(NodeLost, match="has ended the connection"):
                await asking
            await check_well(several, 1, 3)

    play(run())


def test_a_new_life_is_another_node() -> None:
    async def run() -> None:
        async with running(2) as several:
            hanging = Hanging()
            several.ics[2].serve("hang", hanging)
            asking = asyncio.create_task(several.ics[1].ask(2, "hang", within_s=WITHIN_S))
            await hanging.begun.wait()
            again = Node(NodeState.COMINGUP, "another", 0.0)
            several.ics[1].set_members(View(nodes={**view_of(1).nodes, 2: again}))
            with pytest.raises(NodeLost):
                await asking

    play(run())


def test_a_restarted_daemon_is_reached_again() -> None:
    async def run() -> None:
        async with running(2) as several:
            hanging = Hanging()
            several.ics[2].serve("hang", hanging)
            asking = asyncio.create_task(several.ics[1].ask(2, "hang", within_s=WITHIN_S))
            await hanging.begun.wait()
            await check_well(several, 2, 1)
            await several.stop(2)
            with pytest.raises(NodeLost):
                await asking
            waiting = asyncio.create_task(several.ics[1].ask(2, "ping", within_s=WITHIN_S))
            await several.start(2)
            assert await waiting == {}
            await check_well(several, 2, 1)

    play(run())


def test_a_node_that_answers_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssi.node.ics.way.REACH_S", 0.3)

    async def run() -> None:
        async with running(2) as several:
            await several.stop(2)
            with pytest.raises(NodeLost, match="node2 does not answer"):
                await several.ics[1].ask(2, "ping", within_s=WITHIN_S)

    play(run())


def test_a_key_of_another_length_is_refused() -> None:
    async def run() -> None:
        async with running(1) as several:
            with pytest.raises(ProtocolError, match="key of 3 bytes"):
                several.ics[1].hear_key({"key": "YWJj"})

    play(run())


WRONG_HELLOS: list[tuple[dict[str, object], str]] = [
    ({"version": 2}, "speaks version 2"),
    ({"version": "1"}, "'version'"),
    ({"cluster": "other"}, "of cluster 'other'"),
    ({"cluster": ""}, "'cluster' has 0"),
    ({"node": 3, "boot": "boot-of-3"}, "says that it is node3"),
    ({"node": 0}, "'node'"),
    ({"boot": "another"}, "this life of node2"),
    ({"boot": "x" * 70_000}, "70000 characters"),
    ({"boot": None}, "'boot'"),
    ({"is": "call"}, "'is'"),
    ({"is": 3}, "'is'"),
]


@pytest.mark.parametrize(("fields", "why"), WRONG_HELLOS)
def test_wrong_hellos_are_refused(
    fields: dict[str, object], why: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gate, "KNOWN_S", 0.05)

    async def run() -> None:
        async with running(2) as several:
            async with stranger(several, 1, at=2) as other:
                other.greet(2, **fields)
                (said,) = await other.wait_end()
                assert said["is"] == "refused"
                assert why in said["why"]
            await check_well(several)

    play(run())
    assert "refused from 127.0.50.2: " in caplog.text
    assert why in caplog.text


def test_a_node_outside_the_view_is_refused_and_one_that_comes_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "KNOWN_S", 0.2)

    async def run() -> None:
        async with running(2) as several:
            async with stranger(several, 1, at=7) as other:
                other.greet(7)
                (said,) = await other.wait_end()
                assert said["why"] == "node7 is not in the view"
            several.ics[1].set_members(view_of(1))
            monkeypatch.setattr(gate, "KNOWN_S", WITHIN_S)
            asking = asyncio.create_task(check_well(several))
            await asyncio.sleep(0.05)
            assert not asking.done()
            several.ics[1].set_members(view_of(1, 2))
            await asking

    play(run())


def test_who_says_nothing_is_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate, "HELLO_S", 0.2)

    async def run() -> None:
        async with running(2) as several, stranger(several, 1, at=2) as other:
            assert await other.wait_end() == []
            await check_well(several)

    play(run())
    assert "no hello within 0.2 s" in caplog.text


def test_one_address_has_few_connections_without_hello(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with running(2) as several, contextlib.AsyncExitStack() as stack:
            for _ in range(gate.STRANGERS_EACH):
                await stack.enter_async_context(stranger(several, 1, at=9))
            async with stranger(several, 1, at=9) as other:
                assert await other.wait_end() == []
            await check_well(several)

    play(run())
    assert "too many connections without a hello" in caplog.text


def test_a_port_that_anybody_may_take_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with running(2) as several:
            object.__setattr__(several.places, "sources", range(1, 2))
            reader, writer = await asyncio.open_connection("127.0.50.1", several.places.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    play(run())
    assert "which is not reserved" in caplog.text


CALL: dict[str, object] = {"is": "call", "id": 1, "name": "echo", "alone": False, "body": {}}
PART: dict[str, object] = {"is": "part", "id": 1, "body": {}}

WRONG_TALK: list[tuple[list[dict[str, object]], str]] = [
    ([{"is": "hello"}], "'is'"),
    ([{"is": "answer", "id": 1}], "'is'"),
    ([{"id": 1}], "'is'"),
    ([PART], "which has not begun"),
    ([{"is": "cancel", "id": 9}], "which has not begun"),
    ([{**CALL, "id": 0}], "behind call 0"),
    ([{**CALL, "id": -1}], "'id'"),
    ([CALL, CALL], "behind call 1"),
    ([{**CALL, "name": 3}], "'name'"),
    ([{**CALL, "body": []}], "'body'"),
    ([{**CALL, "alone": 1}], "'alone'"),
    ([{**CALL, "alone": True, "name": "hang"}, PART], "behind the last"),
    ([{**CALL, "name": "hang"}, {"is": "finish", "id": 1}, PART], "behind the last"),
    ([{**CALL, "name": "hang"}, *([{**PART, "body": {"x": "x" * 65_000}}] * 3)], "than there was"),
    ([{**CALL, "name": "hang"}, {"is": "credit", "id": 1, "bytes": 1}], "than was sent"),
    ([{"is": "finish", "id": 0}], "'is'"),
    ([{**CALL, "id": n, "name": "hang"} for n in range(1, MAX_CALLS + 2)], "calls at once"),
]


async def enter(other: Stranger) -> None:
    other.greet(2)
    said = await other.read()
    assert said
    assert said["is"] == "hello"


@pytest.mark.parametrize(("messages", "why"), WRONG_TALK)
def test_wrong_talk_ends_the_connection(
    messages: list[dict[str, object]], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with running(2) as several:
            hanging = Hanging()
            several.ics[1].serve("hang", hanging)
            several.ics[1].serve("echo", echo)
            async with stranger(several, 1, at=2) as other:
                await enter(other)
                for message in messages:
                    other.say(**message)
                await other.wait_end()
            await check_well(several)
            assert hanging.count == 0

    play(run())
    assert why in caplog.text


garbage = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda data: data + b"\n"),
    st.just(b"x" * (MAX_LINE + 1)),
    st.just(b"[" * 100_000 + b"\n"),
    st.sampled_from([b"\n", b"[]\n", b"{}\n", b"null\n", b'{"is": {}}\n', b'{"is": "call"}\n']),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["is", "id", "name", "body", "alone", "bytes", "error"]), inner,
            max_size=4,
        ),
        max_leaves=8,
    ).map(lambda value: repr(value).replace("'", '"').encode() + b"\n"),
)  # fmt: skip


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.mark.usefixtures("_quiet")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(garbage, max_size=4), st.booleans(), st.integers(0, 60))
def test_garbage_harms_nobody(pieces: list[bytes], greeted: bool, cut: int) -> None:  # noqa: FBT001
    async def run() -> None:
        async with running(2) as several:
            several.ics[1].serve("echo", echo)
            async with stranger(several, 1, at=2) as other:
                if greeted:
                    await enter(other)
                data = b"".join(pieces)
                other.write(data[: len(data) - cut])
            await check_well(several)
            async with stranger(several, 1, at=2) as other:
                if greeted:
                    await enter(other)
                    other.say(**CALL)
                other.write(b"".join(pieces) + b"\n")
                with contextlib.suppress(OSError):
                    other.writer.write_eof()
                await other.wait_end()
            await check_well(several)

    play(run())


class Impostor:
    """A daemon that says what it likes to those who connect."""

    def __init__(self, several: Several, node: int) -> None:
        self._several = several
        self._node = node

    async def serve(self, *lines: bytes) -> None:
        """Answer each connection by these lines."""

        async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                for line in lines:
                    await reader.readline()
                    writer.write(line)
                if lines[-1]:
                    await reader.readline()
            writer.close()

        listener = self._several.places.listen(self._node)
        secure = self._several.ics[self._node]._secure(b"k" * 32, "impostor")
        self._server = await asyncio.start_server(come, sock=listener, ssl=secure.come)

    async def end(self) -> None:
        self._server.close()
        await self._server.wait_closed()


HELLO = b'{"is":"hello","version":1,"cluster":"small","node":2,"boot":"boot-of-2"}\n'


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ((b"nonsense\n",), "not JSON"),
        ((b'{"is":"refused","why":"go away"}\n',), "go away"),
        ((HELLO.replace(b"of-2", b"of-1"),), "this life of node2"),
        ((HELLO.replace(b'"node":2', b'"node":1'),), "node1 answers for node2"),
        ((b"",), "instead of a hello"),
        ((HELLO, b'{"is":"answer","id":1}\n'), "keep to the protocol"),
        ((HELLO, b'{"is":"answer","id":1,"error":3}\n'), "keep to the protocol"),
        ((HELLO, b'{"is":"answer","id":2,"body":{}}\n'), "keep to the protocol"),
        ((HELLO, b'{"is":"part","id":0,"body":{}}\n'), "keep to the protocol"),
        ((HELLO, b'{"is":"credit","id":0,"bytes":1}\n'), "keep to the protocol"),
        ((HELLO, b'{"is":"call","id":1}\n'), "keep to the protocol"),
        ((HELLO, b""), "ended the connection"),
    ],
)
def test_who_answers_wrongly_is_left(
    lines: tuple[bytes, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssi.node.ics.way.REACH_S", 0.8)

    async def run() -> None:
        async with running(2) as several:
            await several.stop(2)
            impostor = Impostor(several, 2)
            await impostor.serve(*lines)
            try:
                with pytest.raises(NodeLost, match=why):
                    await several.ics[1].ask(2, "ping", within_s=WITHIN_S)
            finally:
                await impostor.end()
            monkeypatch.undo()
            await several.start(2)
            await check_well(several, 1, 2)

    play(run())
