"""`ssi exec`: streams, statuses, signals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import time

from support.clusters import Cluster, wait_until

LOST, TIMED_OUT = 69, 124


def test_streams_are_apart_and_the_status_comes_back(trio: Cluster) -> None:
    result = trio.try_run(1, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.out, result.err, result.status) == ("out\n", "err\n", 7)
    assert trio.try_run(1, "sh", "-c", "kill -KILL $$").status == 128 + signal.SIGKILL


def test_a_missing_command_is_127(trio: Cluster) -> None:
    result = trio.try_run(1, "no-such-command")
    assert result.status == 127
    assert "no-such-command" in result.err


def test_bytes_pass_unchanged_in_both_directions(trio: Cluster) -> None:
    data = os.urandom(300_000) + bytes(range(256)) + b"\x00\xff\x04\x03\r\n"
    printed = trio.run(2, "sha256sum", given=data)
    assert printed.split()[0] == hashlib.sha256(data).hexdigest()
    words = [*trio.ssi.person.prefix, "ssi", "exec", "-c", str(trio.number), "2", "--", "cat"]
    echo = subprocess.run(
        words, input=data, capture_output=True, check=True,
        env=trio.ssi.person.environment, timeout=120,
    )  # fmt: skip
    assert echo.stdout == data


def test_arguments_are_not_split_or_expanded(trio: Cluster) -> None:
    argument = "a  b $HOME * ' \" \\ ä"
    assert trio.run(1, "printf", "%s", argument) == argument


def test_what_stays_in_the_background_does_not_hold_the_command(trio: Cluster) -> None:
    assert trio.run(1, "sh", "-c", "sleep 1000 & echo started $!").startswith("started")
    trio.run(1, "env", "SSI_PROC=local", "pkill", "sleep")


def test_a_reader_that_waits_loses_nothing_and_blocks_nobody(trio: Cluster) -> None:
    slow = trio.ssi.person.start(
        ["ssi", "exec", "-c", str(trio.number), "1", "--", "seq", "300000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert slow.stdout is not None
    assert slow.stdout.readline() == b"1\n"
    # Nobody reads the rest now, and others still get through.
    assert trio.run(1, "echo", "through") == "through\n"
    assert slow.stdout.read().split()[-1] == b"300000"
    assert slow.wait(timeout=30) == 0


def test_three_ways_to_fail_are_three_statuses(trio: Cluster) -> None:
    assert trio.try_run(1, "false").status == 1
    result = trio.ssi.try_("exec", "-c", str(trio.number), "-t", "0.5", "1", "--", "sleep", "100")
    assert result.status == TIMED_OUT
    assert "0.5 s" in result.err
    assert trio.try_run(9, "true").status == LOST
    waiting = trio.start_python(3, "print('here', flush=True)\nimport time; time.sleep(100)")
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"here\n"
    trio.crash(3)
    assert waiting.wait(timeout=10) == LOST


def test_interrupting_reaches_the_command(trio: Cluster) -> None:
    waiting = trio.start_python(1, """
import os, signal, sys, time
def stop(number, frame):
    # Not print: it may interrupt the one below, which has been heard before it returns.
    os.write(1, b"interrupted\\n")
    sys.exit(5)
signal.signal(signal.SIGINT, stop)
print("here", flush=True)
time.sleep(100)
""")  # fmt: skip
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"here\n"
    waiting.send_signal(signal.SIGINT)
    assert waiting.stdout.readline() == b"interrupted\n"
    assert waiting.wait(timeout=10) == 5


def test_a_client_that_is_killed_takes_its_command_along(trio: Cluster) -> None:
    waiting = trio.start_python(1, "print('here', flush=True)\nimport time; time.sleep(1234)")
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"here\n"
    waiting.kill()
    waiting.wait()
    wait_until(
        lambda: trio.try_run(1, "pgrep", "-f", "time.sleep.1234").status == 1,
        "the command heard SIGHUP",
    )


def test_many_at_once(trio: Cluster) -> None:
    started = time.monotonic()
    processes = [trio.start_python(n % 3 + 1, f"print({n})") for n in range(12)]
    printed = [int(p.communicate(timeout=120)[0]) for p in processes]
    assert printed == list(range(12)), time.monotonic() - started


GARBAGE = [
    b"", b"\n\n\n", b"[]\n", b"{}\n", b"nonsense\n", b"\xff\xfe\x00\n", b'{"do": 3}\n',
    b'{"do": "nope"}\n', b'{"do": "exec"}\n', b'{"do": "exec", "node": 0, "argv": []}\n',
    b'{"do": "exec", "node": 1, "argv": "ls", "ramdisk": false}\n',
    b'{"do": "exec", "node": 1, "argv": [1], "ramdisk": false}\n',
    b'{"do": "console", "node": 1}\n', b'{"do": "add", "nodes": [1, "2"]}\n',
    b'{"do": "rm", "nodes": [128]}\n', b'{"do": "net", "faults": {"groups": 1}}\n',
    b'{"do": "stop", "within_s": -1}\n', b"x" * 300_000, b"[" * 100_000 + b"\n",
]  # fmt: skip


def test_garbage_on_the_control_socket_harms_nobody(trio: Cluster) -> None:
    path = trio.ssi.person.home / f"run/ssi/{trio.number}/control"
    for garbage in GARBAGE:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            with contextlib.suppress(BrokenPipeError):
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := client.recv(65536):
                    answer += part
        assert answer == b"" or "error" in json.loads(answer), garbage[:60]
    assert set(trio.nodes()) == {1, 2, 3}
    assert trio.run(1, "echo", "well") == "well\n"


def test_garbage_from_a_node_harms_nobody(trio: Cluster) -> None:
    # The node's own root can write to its line to the host. It may lose what it has there itself.
    noise = '(head -c 200000 /dev/urandom; echo; echo {}; echo \'{"is": "fence"}\') >/dev/ttyS0'
    trio.run(2, "sh", "-c", noise)
    assert trio.run(2, "echo", "well") == "well\n"
    assert trio.run(1, "echo", "well") == "well\n"
    assert set(trio.nodes()) == {1, 2, 3}
