"""What arrives is read into declared types or refused, whatever it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common import wire
from ssi.common.errors import NodeLost, ProtocolError, SsiError, TimedOut, UsageError

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars, lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(st.text(), deeper)
)

GETTERS: dict[str, tuple[Callable[[Mapping[str, object], str], object], type]] = {
    "text": (wire.get_text, str),
    "int": (lambda message, key: wire.get_int(message, key, 0, 9), int),
    "flag": (wire.get_flag, bool),
    "texts": (wire.get_texts, list),
    "ints": (lambda message, key: wire.get_ints(message, key, 0, 9), list),
    "object": (wire.get_object, dict),
    "bytes": (wire.get_bytes, bytes),
}
getters = pytest.mark.parametrize("name", GETTERS)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(line: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(wire.decode(line), dict)


@given(values)
def test_any_json_is_a_message_or_refused(value: object) -> None:
    line = json.dumps(value).encode()
    if isinstance(value, dict):
        assert json.dumps(wire.decode(line)) == json.dumps(value)
    else:
        with pytest.raises(ProtocolError):
            wire.decode(line)


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{", b"1", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000],
)
def test_refuses(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(line)


@given(st.dictionaries(st.text(), values))
def test_a_message_is_one_line(message: dict[str, object]) -> None:
    line = wire.encode(message)
    assert line.index(b"\n") == len(line) - 1


@getters
@given(value=values)
def test_getter_returns_its_type_or_refuses(name: str, value: object) -> None:
    get, kind = GETTERS[name]
    with contextlib.suppress(ProtocolError):
        assert type(get({"field": value}, "field")) is kind


@getters
def test_getter_says_briefly_what_it_refuses(name: str) -> None:
    with pytest.raises(ProtocolError, match="field") as caught:
        GETTERS[name][0]({"field": None}, "field")
    assert len(str(caught.value)) < 200


@getters
def test_getter_refuses_a_message_without_the_field(name: str) -> None:
    with pytest.raises(ProtocolError, match="field"):
        GETTERS[name][0]({}, "field")


@pytest.mark.parametrize("value", [True, False, 10, -1, 1.0, "1", None, 10**400])
def test_get_int_refuses(value: object) -> None:
    with pytest.raises(ProtocolError):
        wire.get_int({"field": value}, "field", 0, 9)


@given(st.binary())
def test_bytes_survive(data: bytes) -> None:
    assert wire.get_bytes({"data": wire.put_bytes(data)}, "data") == data


@pytest.mark.parametrize("text", ["a", "ä===", "YQ", "YQ==\n", "Y Q==", "YQ==YQ=="])
def test_get_bytes_refuses(text: str) -> None:
    with pytest.raises(ProtocolError):
        wire.get_bytes({"data": text}, "data")


@pytest.mark.parametrize("kind", [SsiError, UsageError, NodeLost, TimedOut, ProtocolError])
@pytest.mark.parametrize("hint", [None, "do this"])
def test_errors_survive(kind: type[SsiError], hint: str | None) -> None:
    message = wire.decode(wire.encode(wire.error_message(kind("it broke", hint=hint))))
    with pytest.raises(kind, match="it broke") as caught:
        wire.raise_error(message)
    assert type(caught.value) is kind
    assert caught.value.hint == hint


def test_an_unknown_error_is_an_error() -> None:
    with pytest.raises(SsiError, match="what"):
        wire.raise_error({"error": "new-kind", "message": "what", "hint": 5})


@given(st.dictionaries(st.text(), values))
def test_any_message_is_no_error_or_raises_one_of_ours(message: dict[str, object]) -> None:
    try:
        wire.raise_error(message)
    except SsiError:
        assert "error" in message


def test_a_full_chunk_fits_into_a_line() -> None:
    data = wire.put_bytes(b"\xff" * wire.CHUNK)
    assert len(wire.encode({"is": "out", "id": 2**31, "data": data})) < wire.MAX_LINE
