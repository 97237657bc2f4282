"""Images of CRIU's: what is not changed stays as it is, and what is none is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssi.common.errors import ProtocolError
from ssi.node.migration.images import COMMON_MAGIC, Fields, Image

NUMBERS = st.integers(1, 2**20)
VALUES = st.integers(0, 2**64 - 1) | st.binary(max_size=300)
MESSAGES = st.lists(st.tuples(NUMBERS, VALUES), max_size=8)

MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def encode(message: list[tuple[int, int | bytes]]) -> bytes:
    """Encode a message, as the protobuf library would."""
    data = b""
    for number, value in message:
        if isinstance(value, int):
            data += varint(number << 3) + varint(value)
        else:
            data += varint(number << 3 | 2) + varint(len(value)) + value
    return data


def image(*bodies: bytes) -> bytes:
    head = struct.pack("=II", COMMON_MAGIC, 0x12345678)
    return head + b"".join(struct.pack("=I", len(body)) + body for body in bodies)


@given(MESSAGES)
def test_what_is_not_changed_stays(message: list[tuple[int, int | bytes]]) -> None:
    data = encode(message)
    fields = Fields(data)
    assert fields.dump() == data
    for number, _ in message:
        assert fields.has(number)
        mine = [value for other, value in message if other == number]
        assert fields.numbers(number) == [value for value in mine if isinstance(value, int)]
        assert fields.texts(number) == [value for value in mine if isinstance(value, bytes)]


def test_numbers_of_fixed_size_stay() -> None:
    data = bytes([1 << 3 | 1, *range(8), 2 << 3 | 5, *range(4), 3 << 3, 7])
    fields = Fields(data)
    assert fields.number(3) == 7
    fields.set(3, 8)
    assert fields.dump() == data[:-1] + b"\x08"


@given(MESSAGES, NUMBERS, VALUES)
def test_a_field_is_set_at_its_place(
    message: list[tuple[int, int | bytes]], number: int, value: int | bytes
) -> None:
    fields = Fields(encode(message))
    fields.set(number, value)
    expected = list(message)
    places = [place for place, (other, _) in enumerate(message) if other == number]
    if places:
        expected[places[0]] = (number, value)
    else:
        expected.append((number, value))
    assert fields.dump() == encode(expected)


@given(MESSAGES, NUMBERS)
def test_a_field_is_dropped(message: list[tuple[int, int | bytes]], number: int) -> None:
    fields = Fields(encode(message))
    fields.drop(number)
    assert not fields.has(number)
    assert (fields.number(number), fields.text(number)) == (0, b"")
    assert fields.dump() == encode([one for one in message if one[0] != number])


def test_a_message_in_a_message_is_changed() -> None:
    inner = encode([(1, 5), (2, b"x")])
    fields = Fields(encode([(3, inner), (4, 1), (3, inner)]))
    fields.change(3, lambda message: message.set(1, 300))
    changed = encode([(1, 300), (2, b"x")])
    assert fields.dump() == encode([(3, changed), (4, 1), (3, changed)])


@pytest.mark.parametrize(
    "data",
    [
        b"\x80", b"\x08", b"\x08\x80", b"\x08" + b"\xff" * 11, b"\x0a", b"\x0a\x05abcd", b"\x0b",
        b"\x0c", b"\x0f", b"\x09abcdefg", b"\x0dabc",
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Fields(data)


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused(data: bytes) -> None:
    try:
        fields = Fields(data)
    except ProtocolError:
        return
    assert Fields(fields.dump()).dump() == fields.dump()


@MANY
@given(bodies=st.lists(MESSAGES, max_size=4))
def test_a_file_stays(tmp_path: Path, bodies: list[list[tuple[int, int | bytes]]]) -> None:
    path = tmp_path / "core-1.img"
    data = image(*map(encode, bodies))
    path.write_bytes(data)
    found = Image(path)
    assert [entry.dump() for entry in found.entries] == list(map(encode, bodies))
    found.save()
    assert path.read_bytes() == data


@MANY
@given(bodies=st.lists(MESSAGES, min_size=1, max_size=3), data=st.data())
def test_a_file_that_ends_early_is_refused(
    tmp_path: Path, bodies: list[list[tuple[int, int | bytes]]], data: st.DataObject
) -> None:
    whole = image(*map(encode, bodies))
    ends = {8}
    for body in bodies:
        ends.add(max(ends) + 4 + len(encode(body)))
    length = data.draw(st.integers(0, len(whole) - 1).filter(lambda end: end not in ends))
    path = tmp_path / "files.img"
    path.write_bytes(whole[:length])
    with pytest.raises(ProtocolError):
        Image(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "files.img"
    path.write_bytes(b"#!/bin/sh\nexit\n")
    with pytest.raises(ProtocolError, match=r"files\.img is no image"):
        Image(path)
