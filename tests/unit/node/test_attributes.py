"""Limits and scheduling: who may change those of whom, and what another node may ask."""

from __future__ import annotations

import os

import pytest

from ssi.common.errors import ProtocolError
from ssi.node.process.attributes import (
    ATTRIBUTES,
    Attempt,
    is_io_priority,
    is_policy,
    may_limit,
    may_prioritise,
    may_schedule,
    may_set_attributes,
    owns,
    raises_hard,
    read_attributes,
)
from ssi.node.process.caller import Caller

ROOT, ALICE, BOB = 0, 1001, 1002


def person(*uids: int, gid: int = 100) -> Caller:
    """Somebody with these real, effective and saved users."""
    real, effective, saved = uids if len(uids) == 3 else uids * 3
    return Caller(40000, (real, effective, saved), (gid, gid, gid), ())


def test_an_owner_is_who_the_process_runs_as() -> None:
    assert owns(person(ALICE), person(ALICE), 0)
    assert owns(person(ALICE), person(BOB, ALICE, BOB), 0)
    assert not owns(person(ALICE), person(BOB, BOB, ALICE), 0)
    assert not owns(person(ALICE, BOB, ALICE), person(ALICE), 0)
    assert not owns(person(ALICE), person(ALICE), 1 << 21)
    assert owns(person(BOB, ROOT, BOB), person(ALICE), 1 << 21)


def test_limits_are_for_who_is_the_same_in_all() -> None:
    assert may_limit(person(ALICE), person(ALICE))
    assert may_limit(person(ALICE, BOB, BOB), person(ALICE))
    assert not may_limit(person(ALICE), person(ALICE, ALICE, ROOT))
    assert not may_limit(person(ALICE), person(ALICE, gid=200))
    assert may_limit(person(ROOT), person(ALICE))


@pytest.mark.parametrize(
    ("old", "new", "raises"),
    [((1, 5), (1, 5), False), ((1, 5), (5, 5), False), ((1, 5), (1, 6), True),
     ((1, 5), (1, -1), True), ((-1, -1), (1, 5), False), ((-1, -1), (-1, -1), False)],
)  # fmt: skip
def test_hard_limits(old: tuple[int, int], new: tuple[int, int], *, raises: bool) -> None:
    assert raises_hard(old, new) == raises


def test_policies_that_are_not_roots_only() -> None:
    reset = os.SCHED_RESET_ON_FORK
    assert may_schedule(os.SCHED_OTHER, os.SCHED_BATCH, is_owner=True)
    assert may_schedule(os.SCHED_OTHER, os.SCHED_IDLE | reset, is_owner=True)
    assert not may_schedule(os.SCHED_OTHER, os.SCHED_BATCH, is_owner=False)
    assert not may_schedule(os.SCHED_OTHER, os.SCHED_RR, is_owner=True)
    assert not may_schedule(os.SCHED_IDLE, os.SCHED_OTHER, is_owner=True)
    assert not may_schedule(os.SCHED_OTHER | reset, os.SCHED_OTHER, is_owner=True)


def test_policies_that_are_none() -> None:
    assert is_policy(os.SCHED_OTHER, 0)
    assert is_policy(os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 99)
    for policy, priority in ((os.SCHED_OTHER, 1), (os.SCHED_RR, 0), (os.SCHED_RR, 100), (77, 0)):
        assert not is_policy(policy, priority)


def test_nobody_but_root_makes_a_process_nicer_to_itself() -> None:
    for nice, may in ((5, True), (6, True), (4, False)):
        said = may_set_attributes(os.SCHED_OTHER, (5, nice), os.SCHED_BATCH, is_owner=True)
        assert said == may
    assert may_set_attributes(os.SCHED_OTHER, (5, 0), os.SCHED_IDLE, is_owner=True)
    assert not may_set_attributes(os.SCHED_OTHER, (5, 5), os.SCHED_OTHER, is_owner=False)


def test_priorities_of_input_and_output() -> None:
    realtime, best, idle = (kind << 13 for kind in (1, 2, 3))
    assert all(is_io_priority(value) for value in (0, realtime | 7, best, idle))
    assert not any(is_io_priority(value) for value in (1, 4 << 13, 2**32 - 1))
    assert may_prioritise(person(ALICE), person(ALICE, BOB, BOB), best, 0)
    assert not may_prioritise(person(ALICE), person(BOB, ALICE, ALICE), best, 0)
    assert not may_prioritise(person(ALICE), person(ALICE), best, 1 << 21)
    assert not may_prioritise(person(ALICE), person(ALICE), realtime, 0)
    assert may_prioritise(person(ROOT), person(ALICE), realtime, 1 << 21)


@pytest.mark.parametrize(
    ("size", "tail", "known"),
    [(0, b"", 48), (48, b"", 48), (56, b"", 56), (4096, b"", 56), (4096, b"\1", None),
     (47, b"", None), (4097, b"", None)],
)  # fmt: skip
def test_attributes_have_a_size_of_their_own(size: int, tail: bytes, known: int | None) -> None:
    given = size.to_bytes(4, "little") + bytes(range(52)) + tail
    read = read_attributes(lambda length: given.ljust(5000, b"\0")[:length])
    if known is None:
        assert read is None
    else:
        expected = known.to_bytes(4, "little") + bytes(range(known - 4))
        assert read == expected.ljust(ATTRIBUTES.size, b"\0")


GOOD = Attempt("prlimit64", 98304, 7, b"\1" * 16, takes=True, caller=person(ALICE))


def test_an_attempt_survives_the_wire() -> None:
    assert Attempt.load(GOOD.dump()) == GOOD


@pytest.mark.parametrize(
    "wrong",
    [{"call": "kill"}, {"call": None}, {"pid": 0}, {"pid": -5}, {"value": -1}, {"value": 2**32},
     {"flags": -1}, {"given": "AAAA"}, {"given": None}, {"takes": 1}, {"caller": {}},
     {"call": "sched_setaffinity", "value": 3}],
)  # fmt: skip
def test_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        Attempt.load({**GOOD.dump(), **wrong})
