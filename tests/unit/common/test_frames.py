"""Requests and frames of the local socket: read as they were written, or refused."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common import frames
from ssi.common.errors import ProtocolError
from ssi.common.frames import Given, Reply

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
numbers = st.integers(0, 2**32 - 1)


@given(st.lists(words, min_size=1), st.lists(words), words, st.integers(0, 0o777))
def test_a_request_is_read_as_it_was_written(
    argv: list[str], environment: list[str], cwd: str, umask: int
) -> None:
    data = frames.encode_call(argv, environment, cwd, umask)
    assert frames.parse_length(data[:4]) == len(data) - 4
    call = frames.parse_call(data[4:])
    assert (call.argv, call.cwd, call.umask) == (tuple(argv), cwd, umask)
    assert {f"{name}={value}" for name, value in call.environment.items()} <= set(environment)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert frames.parse_call(body).argv


@given(numbers, numbers, numbers, st.lists(st.sampled_from([b"a", b"", b"B=c", b"\xff"])))
def test_any_counts_are_right_or_refused(
    argc: int, envc: int, umask: int, strings: list[bytes]
) -> None:
    body = struct.pack("<IIII", 1, argc, envc, umask) + b"".join(s + b"\0" for s in strings)
    with contextlib.suppress(ProtocolError):
        frames.parse_call(body)
        assert argc + envc + 1 == len(strings)


def body_of(*numbers: int, strings: bytes = b"a\0/\0") -> bytes:
    return struct.pack("<IIII", *numbers) + strings


@pytest.mark.parametrize(
    "body",
    [b"", b"\0" * 16, body_of(2, 1, 0, 0), body_of(0, 1, 0, 0), body_of(1, 0, 1, 0),
     body_of(1, 2, 0, 0), body_of(1, 1, 1, 0), body_of(1, 1, 0, 0o1000),
     body_of(1, 2**31, 2**31, 0), body_of(1, 1, 0, 0, strings=b"a\0/"),
     body_of(1, 1, 0, 0, strings=b"a\0/\0\0")],
)  # fmt: skip
def test_refuses(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.parse_call(body)


def test_what_is_not_utf8_comes_through() -> None:
    argv = [b"x\xff\xfe".decode(errors="surrogateescape")]
    assert frames.parse_call(frames.encode_call(argv)[4:]).argv == tuple(argv)


def test_the_first_of_two_variables_counts() -> None:
    body = frames.encode_call(["a"], ["B=1", "B=2", "=no", "none", "C="])[4:]
    assert frames.parse_call(body).environment == {"B": "1", "C": ""}


@pytest.mark.parametrize("length", [0, 16, frames.MAX_REQUEST + 1, 2**32 - 1])
def test_refuses_a_length(length: int) -> None:
    with pytest.raises(ProtocolError):
        frames.parse_length(frames.LENGTH.pack(length))


def test_a_request_has_a_limit() -> None:
    with pytest.raises(ProtocolError, match="are the most"):
        frames.encode_call(["x" * frames.MAX_REQUEST])


@given(st.binary(max_size=3 * frames.MAX_FRAME))
def test_frames_carry_all_of_it(data: bytes) -> None:
    found = b""
    for frame in frames.encode_frames(Reply.STDOUT, data):
        kind, length = frames.parse_head(frame[: frames.HEAD.size])
        assert kind == Reply.STDOUT
        assert length == len(frame) - frames.HEAD.size
        found += frame[frames.HEAD.size :]
    assert found == data


def test_a_frame_has_a_limit() -> None:
    with pytest.raises(ProtocolError):
        frames.parse_head(frames.HEAD.pack(1, frames.MAX_FRAME + 1))


@given(numbers)
def test_numbers(number: int) -> None:
    data = frames.encode_number(Given.SIGNAL, number)
    assert frames.parse_number(data[frames.HEAD.size :]) == number
    with pytest.raises(ProtocolError):
        frames.parse_number(data)
