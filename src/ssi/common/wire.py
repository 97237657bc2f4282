"""Messages as lines of JSON, read field by field into declared types.

One message is one line, so a reader that comes in the middle (a daemon was restarted) is right
again at the next newline. Bytes travel as base64. What is read here came from elsewhere: each
getter checks the type and raises ProtocolError, and nothing else is ever used of a message.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from ssi.common.errors import WIRE_ERRORS, ProtocolError, SsiError

MAX_LINE = 128 * 1024
"""Bytes in a message at most, newline included. The largest: a CHUNK as base64, or an argv."""

CHUNK = 16 * 1024
"""Bytes of a stream in one message."""

WINDOW = 16 * CHUNK
"""Bytes of one stream that may be under way before the receiver gave credit for more."""

Message = dict[str, Any]


def encode(message: Mapping[str, object]) -> bytes:
    """Return `message` as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message in `line`, or raise ProtocolError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {line[:60]!r}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"not an object: {line[:60]!r}")
    return message


def _field(message: Mapping[str, object], key: str, kind: type) -> Any:  # noqa: ANN401
    value = message.get(key)
    # bool is an int to isinstance, and nothing here means a number by true.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ProtocolError(f"field {key!r} is {value!r:.60}")
    return value


def get_text(message: Mapping[str, object], key: str) -> str:
    """Return the text in field `key`."""
    value: str = _field(message, key, str)
    return value


def get_word(message: Mapping[str, object], key: str, words: Collection[str]) -> str:
    """Return the text in field `key`, one of `words`."""
    text = get_text(message, key)
    if text not in words:
        raise ProtocolError(f"field {key!r} is {text!r:.60}, none of {', '.join(words)}")
    return text


def get_int(message: Mapping[str, object], key: str, low: int, high: int) -> int:
    """Return the whole number in field `key`, from `low` to `high`."""
    value: int = _field(message, key, int)
    if not low <= value <= high:
        raise ProtocolError(f"field {key!r} is {value}, not from {low} to {high}")
    return value


def get_number(message: Mapping[str, object], key: str) -> float:
    """Return the number in field `key`, whole or not."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProtocolError(f"field {key!r} is {value!r:.60}")
    return float(value)


def get_flag(message: Mapping[str, object], key: str) -> bool:
    """Return the truth value in field `key`."""
    value: bool = _field(message, key, bool)
    return value


def get_texts(message: Mapping[str, object], key: str) -> list[str]:
    """Return the list of texts in field `key`."""
    values: list[object] = _field(message, key, list)
    if not all(isinstance(value, str) for value in values):
        raise ProtocolError(f"field {key!r} is not a list of texts")
    return [str(value) for value in values]


def get_ints(message: Mapping[str, object], key: str, low: int, high: int) -> list[int]:
    """Return the list of whole numbers in field `key`, each from `low` to `high`."""
    values: list[object] = _field(message, key, list)
    return [get_int({key: value}, key, low, high) for value in values]


def get_object(message: Mapping[str, object], key: str) -> Message:
    """Return the object in field `key`."""
    value: Message = _field(message, key, dict)
    return value


def get_objects(message: Mapping[str, object], key: str) -> list[Message]:
    """Return the list of objects in field `key`."""
    values: list[object] = _field(message, key, list)
    return [get_object({key: value}, key) for value in values]


def get_bytes(message: Mapping[str, object], key: str) -> bytes:
    """Return the bytes in field `key`."""
    try:
        return base64.b64decode(get_text(message, key), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"field {key!r} is not base64") from error


def put_bytes(data: bytes) -> str:
    """Return `data` as get_bytes reads it."""
    return base64.b64encode(data).decode()


def error_message(error: SsiError) -> Message:
    """Return `error` as a message."""
    return {"error": error.code, "message": str(error), "hint": error.hint}


def raise_error(message: Mapping[str, object]) -> None:
    """Raise the error that `message` is, if it is one."""
    if "error" not in message:
        return
    kind = WIRE_ERRORS.get(get_text(message, "error"), SsiError)
    hint = message.get("hint")
    raise kind(get_text(message, "message"), hint=hint if isinstance(hint, str) else None)
