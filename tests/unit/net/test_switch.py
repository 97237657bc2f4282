"""The switch: a real process and real socket pairs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from ssi.common.errors import SsiError
from ssi.host import native
from ssi.host.net.faults import ALL, Faults
from ssi.host.net.switch import Port, PortKind, Switch, SwitchLost
from support.wires import (
    BROADCAST,
    DEADLINE_S,
    GATEWAY,
    arp_request,
    frame,
    mac,
    receive,
    receive_exactly,
    switched,
)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def barrier(wires: dict[int, socket.socket], sender: int, receiver: int) -> None:
    """Return when all that `sender` has sent to `receiver` until now has been dealt with."""
    token = os.urandom(8)
    wires[sender].send(frame(mac(receiver), mac(sender), token))
    assert (await receive(wires[receiver]))[14:] == token


def test_delivers_to_the_addressed_node_only() -> None:
    async def test() -> None:
        async with switched(1, 2, 3) as (_, wires):
            wires[1].send(frame(mac(2), mac(1)))
            assert await receive(wires[2]) == frame(mac(2), mac(1))
            await barrier(wires, 1, 3)

    run(test())


def test_carries_the_largest_frame() -> None:
    async def test() -> None:
        async with switched(1, 127) as (_, wires):
            largest = frame(mac(127), mac(1), os.urandom(65535))
            wires[1].send(largest)
            assert await receive(wires[127]) == largest

    run(test())


@pytest.mark.parametrize("address", [BROADCAST, bytes.fromhex("01005e323201")])
def test_broadcast_and_multicast_reach_all_others(address: bytes) -> None:
    async def test() -> None:
        async with switched(1, 2, 3) as (_, wires):
            sent = frame(address, mac(1))
            wires[1].send(sent)
            assert await receive(wires[2]) == await receive(wires[3]) == sent
            await barrier(wires, 2, 1)  # nothing came back to the sender before

    run(test())


def test_drops_frames_with_another_nodes_address_and_counts_them() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            for sender in (mac(2), mac(3), BROADCAST, bytes(6), GATEWAY):
                wires[1].send(frame(mac(2), sender, b"spoofed"))
            await barrier(wires, 1, 2)
            stats = (await switch.stats())[Port(PortKind.NODE, 1)]
            assert (stats.spoofed, stats.frames_in) == (5, 6)

    run(test())


@pytest.mark.parametrize("bad", [b"x", b"x" * 13, frame(mac(2), mac(1), bytes(70000))])
def test_drops_what_is_no_frame(bad: bytes) -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            wires[1].send(bad)
            await barrier(wires, 1, 2)
            assert (await switch.stats())[Port(PortKind.NODE, 1)].malformed == 1

    run(test())


def test_an_empty_message_is_not_the_end() -> None:
    async def test() -> None:
        async with switched(1, 2) as (_, wires):
            wires[1].send(b"")
            await barrier(wires, 1, 2)

    run(test())


def test_a_receiver_that_does_not_read_costs_nobody_else() -> None:
    async def test() -> None:
        async with switched(1, 2, 3) as (switch, wires):
            big = frame(mac(2), mac(1), bytes(60000))
            for _ in range(500):  # 30 MB: more than all buffers on the way
                # sock_sendall would wait for a switch that no longer reads; here it must not.
                async with asyncio.timeout(DEADLINE_S):
                    await asyncio.get_running_loop().sock_sendall(wires[1], big)
            await barrier(wires, 1, 3)
            stats = (await switch.stats())[Port(PortKind.NODE, 2)]
            assert stats.full > 0
            assert stats.held > 0
            await drain(wires[2], stats.frames_out)

    async def drain(wire: socket.socket, least: int) -> None:
        for _ in range(least):
            assert len(await receive(wire)) == 60014

    run(test())


def test_what_was_held_for_a_slow_receiver_arrives_in_order() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            sent = 0
            while not (await switch.stats())[Port(PortKind.NODE, 2)].held:
                wires[1].send(frame(mac(2), mac(1), sent.to_bytes(4, "big") + bytes(60000)))
                sent += 1
            for number in range(sent):
                assert (await receive(wires[2]))[14:18] == number.to_bytes(4, "big")

    run(test())


def test_partition_cuts_and_heals() -> None:
    async def test() -> None:
        async with switched(1, 2, 3, 4) as (switch, wires):
            await switch.apply(Faults(groups=(frozenset({1, 2}),)))
            wires[1].send(frame(mac(3), mac(1)))
            wires[1].send(frame(BROADCAST, mac(1)))
            assert await receive(wires[2]) == frame(BROADCAST, mac(1))
            await barrier(wires, 4, 3)  # the rest is one group; nothing of node 1 came
            assert (await switch.stats())[Port(PortKind.NODE, 1)].faulted == 3
            await switch.apply(Faults())
            await barrier(wires, 1, 3)

    run(test())


def test_drops_everything_at_100_percent_and_only_there() -> None:
    async def test() -> None:
        async with switched(1, 2, 3) as (switch, wires):
            await switch.apply(Faults().with_drop((1, 2), 1_000_000))
            for _ in range(100):
                wires[1].send(frame(mac(2), mac(1)))
            await barrier(wires, 1, 3)
            await barrier(wires, 3, 2)
            assert (await switch.stats())[Port(PortKind.NODE, 1)].faulted == 100

    run(test())


def test_drops_about_as_much_as_asked_for() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            await switch.apply(Faults().with_drop(ALL, 250_000))
            loop = asyncio.get_running_loop()
            for _ in range(2000):
                await loop.sock_sendall(wires[1], frame(mac(2), mac(1)))
            await switch.apply(Faults())
            wires[1].send(frame(mac(2), mac(1), b"last"))
            got = 0
            while (await receive(wires[2]))[14:] != b"last":
                got += 1
            # Some were still unread when the fault was lifted; six sigma around the rest.
            assert 1380 < got <= 2000

    run(test())


def test_delay_keeps_the_order_of_a_pair_whatever_the_jitter() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            await switch.apply(Faults().with_delay(ALL, 50_000, 40_000))
            start = time.monotonic()
            for number in range(200):
                wires[1].send(frame(mac(2), mac(1), bytes([number])))
            got = [(await receive(wires[2]))[14] for _ in range(200)]
            assert got == list(range(200))
            assert time.monotonic() - start >= 0.010

    run(test())


def test_delay_is_as_long_as_asked_for_and_others_overtake() -> None:
    async def test() -> None:
        async with switched(1, 2, 3) as (switch, wires):
            await switch.apply(Faults().with_delay((1, 2), 100_000, 0))
            start = time.monotonic()
            wires[1].send(frame(mac(2), mac(1), b"late"))
            await barrier(wires, 3, 2)  # would see "late" if that came first
            assert await receive(wires[2]) == frame(mac(2), mac(1), b"late")
            assert time.monotonic() - start >= 0.1

    run(test())


def test_reports_a_closed_port_after_its_last_frame() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            wires[2].send(frame(mac(1), mac(2), b"unread by 1"))
            # Once it is there, closing makes the switch's next read fail before it succeeds.
            while not (await switch.stats())[Port(PortKind.NODE, 1)].frames_out:
                pass
            wires[1].send(frame(mac(2), mac(1), b"last words"))
            wires[1].close()
            assert await switch.wait_closed() == Port(PortKind.NODE, 1)
            assert (await receive(wires[2]))[14:] == b"last words"
            assert Port(PortKind.NODE, 1) not in await switch.stats()

    run(test())


def test_a_node_can_come_back() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            wires[1].close()
            assert await switch.wait_closed() == Port(PortKind.NODE, 1)
            with await switch.attach(1) as again:
                again.setblocking(False)
                await barrier({1: again, 2: wires[2]}, 1, 2)

    run(test())


def test_the_end_of_a_port_that_was_replaced_is_not_reported() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            wires[1].close()
            while Port(PortKind.NODE, 1) in await switch.stats():
                pass
            with await switch.attach(1):
                wires[2].close()
                assert await switch.wait_closed() == Port(PortKind.NODE, 2)

    run(test())


def test_a_detached_port_is_not_reported() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            await switch.detach(1)
            assert await receive(wires[1]) == b""
            wires[2].close()
            assert await switch.wait_closed() == Port(PortKind.NODE, 2)

    run(test())


def test_refuses_a_second_port_for_a_node() -> None:
    async def test() -> None:
        async with switched(1) as (switch, _):
            with pytest.raises(SsiError, match="node1 has a port on the switch already"):
                await switch.attach(1)

    run(test())


# ---- uplinks ----


def framed(*frames: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "big") + each for each in frames)


async def plug_uplink(switch: Switch, node: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    await switch.attach_uplink(node, theirs)
    ours.setblocking(False)
    return ours


def test_gateway_frames_take_the_nodes_own_uplink() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            with await plug_uplink(switch, 1) as one, await plug_uplink(switch, 2) as two:
                for sent in (frame(GATEWAY, mac(1)), arp_request(mac(1), "192.168.50.254")):
                    wires[1].send(sent)
                    assert await receive_exactly(one, 4 + len(sent)) == framed(sent)
                await barrier(wires, 1, 2)
                with pytest.raises(BlockingIOError):
                    two.recv(1)

    run(test())


def test_other_arp_requests_and_broadcasts_stay_inside() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            with await plug_uplink(switch, 1) as uplink:
                for sent in (arp_request(mac(1), "192.168.50.2"), frame(BROADCAST, mac(1))):
                    wires[1].send(sent)
                    assert await receive(wires[2]) == sent
                with pytest.raises(BlockingIOError):
                    uplink.recv(1)

    run(test())


def test_uplink_frames_reach_their_node_only_however_they_are_cut() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            with await plug_uplink(switch, 1) as uplink:
                first, second = frame(mac(1), GATEWAY, b"1"), frame(mac(2), GATEWAY, b"2" * 2000)
                for byte in framed(first, second, first):
                    await asyncio.get_running_loop().sock_sendall(uplink, bytes([byte]))
                assert [await receive(wires[1]) for _ in range(3)] == [first, second, first]
                uplink.send(framed(frame(mac(1), mac(2), b"spoofed"), first))
                assert await receive(wires[1]) == first
                await barrier(wires, 1, 2)

    run(test())


def test_many_large_frames_pass_an_uplink_both_ways() -> None:
    async def test() -> None:
        async with switched(1) as (switch, wires):
            with await plug_uplink(switch, 1) as uplink:
                rng = random.Random(1)
                down = [
                    frame(mac(1), GATEWAY, rng.randbytes(rng.randrange(65000))) for _ in range(300)
                ]
                sending = asyncio.create_task(
                    asyncio.get_running_loop().sock_sendall(uplink, framed(*down))
                )
                assert [await receive(wires[1]) for _ in down] == down
                await sending
                for sent in (frame(GATEWAY, mac(1), each[14:]) for each in down):
                    wires[1].send(sent)
                    assert await receive_exactly(uplink, 4 + len(sent)) == framed(sent)

    run(test())


def test_a_slow_node_pauses_its_uplink_and_loses_nothing() -> None:
    async def test() -> None:
        async with switched(1) as (switch, wires):
            with await plug_uplink(switch, 1) as uplink:
                sent = framed(frame(mac(1), GATEWAY, bytes(60000))) * 300
                sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(uplink, sent))
                while not (await switch.stats())[Port(PortKind.NODE, 1)].held:
                    pass
                for _ in range(300):
                    assert len(await receive(wires[1])) == 60014
                await sending
                assert not (await switch.stats())[Port(PortKind.NODE, 1)].full

    run(test())


def test_what_was_held_for_a_slow_uplink_keeps_its_framing() -> None:
    async def test() -> None:
        async with switched(1) as (switch, wires):
            with await plug_uplink(switch, 1) as uplink:
                sent = 0
                while (await switch.stats())[Port(PortKind.UPLINK, 1)].held < 5:
                    wires[1].send(frame(GATEWAY, mac(1), sent.to_bytes(4, "big") + bytes(40000)))
                    sent += 1
                for number in range(sent):
                    got = await receive_exactly(uplink, 4 + 40018)
                    assert got[:4] == (40018).to_bytes(4, "big")
                    assert got[18:22] == number.to_bytes(4, "big")

    run(test())


@pytest.mark.parametrize("length", [0, 13, 65554, 2**32 - 1])
def test_an_uplink_with_an_impossible_length_is_closed_and_reported(length: int) -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            with await plug_uplink(switch, 1) as uplink:
                uplink.send(length.to_bytes(4, "big") + b"x" * 20)
                assert await switch.wait_closed() == Port(PortKind.UPLINK, 1)
                with contextlib.suppress(ConnectionResetError):
                    assert await receive(uplink) == b""
                await barrier(wires, 1, 2)

    run(test())


def test_the_end_of_an_uplink_is_reported() -> None:
    async def test() -> None:
        async with switched(1) as (switch, _):
            (await plug_uplink(switch, 1)).close()
            assert await switch.wait_closed() == Port(PortKind.UPLINK, 1)

    run(test())


# ---- control and life ----


def garbage(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(1, 300))
    edges = [*range(9), 127, 128, 2**32 - 1, rng.getrandbits(32)]
    return struct.pack("=8I", *(rng.choice(edges) for _ in range(8)))


def test_garbage_on_the_control_socket_is_refused_and_harmless() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ports = [*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), *socket.socketpair()]
    rng = random.Random(2)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen([native.program("switch")], stdin=theirs.fileno())
        )
        for end in (ours, *ports):
            stack.enter_context(end)  # closed before the wait for the process, which it ends
        theirs.close()
        ours.settimeout(DEADLINE_S)
        for _ in range(20000):
            rights = [rng.choice(ports).fileno() for _ in range(rng.choice([0, 0, 1, 2, 9]))]
            socket.send_fds(ours, [garbage(rng)], rights)
            # Each message has one answer, DONE (1) or COUNTED (3); CLOSED (2) may come between.
            while ours.recv(96)[0] == 2:
                pass
        # Of descriptors of the right type it may have kept one a port; it leaked none.
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) <= 5 + 2 * 127
        assert process.poll() is None


def test_a_supervisor_that_does_not_read_does_not_stop_the_traffic() -> None:
    async def test() -> None:
        async with switched(1, 2) as (switch, wires):
            asyncio.get_running_loop().remove_reader(switch._control)
            with contextlib.suppress(BlockingIOError):
                while True:
                    switch._control.send(bytes(32))
            await barrier(wires, 1, 2)

    run(test())


def test_the_death_of_the_switch_is_told_to_all_who_wait() -> None:
    async def test() -> None:
        async with switched(1) as (switch, wires):
            os.kill(switch.pid, signal.SIGKILL)
            with pytest.raises(SwitchLost, match=str(switch.pid)):
                await switch.wait_closed()
            with pytest.raises(SwitchLost):
                await switch.wait_closed()
            with pytest.raises(SwitchLost):
                await switch.stats()
            assert await receive(wires[1]) == b""

    run(test())


def test_no_process_is_left_at_the_end() -> None:
    async def test() -> None:
        async with switched(1) as (switch, _):
            pid = switch.pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(test())


SUPERVISOR = """
import asyncio, sys
from ssi.host.net.switch import Switch
async def main():
    async with Switch.running() as switch:
        print(switch.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_the_switch_ends_with_its_supervisor() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, env=environment
    ) as supervisor:
        assert supervisor.stdout
        switch = os.pidfd_open(int(supervisor.stdout.readline()))
        supervisor.kill()
        try:
            assert select.select([switch], [], [], DEADLINE_S)[0]
        finally:
            os.close(switch)
