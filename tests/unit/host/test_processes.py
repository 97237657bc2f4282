"""What nodes tell of their processes."""

from __future__ import annotations

import pytest

from ssi.cli.kill import parse_pid, parse_signal
from ssi.cli.ps import render_time
from ssi.common.errors import ProtocolError, UsageError
from ssi.common.wire import encode
from ssi.host.cluster.processes import Process, parse_processes, parse_users

GOOD = {
    "pid": 65537, "ppid": 1, "uid": 1001, "state": "S", "time_s": 61.5, "command": "sleep 9",
}  # fmt: skip


def test_reads_a_table() -> None:
    users = parse_users(b"root:x:0:0::/:\nalice:x:1001:1001::/:\nbob:x:1001:1001::/:\nodd\n")
    assert users == {0: "root", 1001: "alice"}
    [one, other] = parse_processes(encode(GOOD) + encode({**GOOD, "uid": 7}), 2, users)
    assert one == Process(65537, 1, 2, "alice", "S", 61.5, "sleep 9")
    assert other.user == "7"
    assert parse_processes(b"", 2, users) == []


@pytest.mark.parametrize(
    "wrong", [{"pid": 0}, {"ppid": None}, {"uid": "root"}, {"state": 5}, {"time_s": "1"},
              {"command": None}],
)  # fmt: skip
def test_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        parse_processes(encode({**GOOD, **wrong}), 1, {})


def test_times_are_minutes_and_seconds() -> None:
    assert [render_time(time_s) for time_s in (0, 61.9, 6000)] == ["0:00", "1:01", "100:00"]


@pytest.mark.parametrize(
    ("text", "number"), [("TERM", 15), ("sigkill", 9), ("0", 0), ("64", 64), ("hup", 1)]
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "65", "-1", "NONE", "TERM "])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(UsageError):
        parse_signal(text)


def test_pids_are_those_of_people() -> None:
    assert parse_pid("32768") == 32768
    for text in ("32767", "0", "-5", "x", ""):
        with pytest.raises(UsageError):
            parse_pid(text)
