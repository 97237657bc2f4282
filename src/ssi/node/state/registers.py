"""Registers: small values with names, the same on every member (OpenSSI's clreg)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message

MAX_REGISTERS = 1000
MAX_VALUE = 512
"""Characters: with names, all of them together fit one message of corosync."""
MAX_NUMBER = 2**62


@dataclasses.dataclass(frozen=True, slots=True)
class Registers:
    """All of them."""

    values: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def apply(self, message: Message) -> Registers:
        """Return what an operation makes of them. One that cannot be done changes nothing."""
        name, operation = check_name(wire.get_text(message, "name")), wire.get_text(message, "do")
        match operation:
            case "set":
                return self._set(name, wire.get_text(message, "value"))
            case "add":
                number = parse_number(self.values.get(name, "0"))
                if number is None:
                    return self
                amount = wire.get_int(message, "amount", -MAX_NUMBER, MAX_NUMBER)
                return self._set(name, str(number + amount))
            case "delete":
                return Registers({n: v for n, v in self.values.items() if n != name})
            case _:
                raise ProtocolError(f"unknown operation {operation!r:.40}")

    def _set(self, name: str, value: str) -> Registers:
        full = name not in self.values and len(self.values) >= MAX_REGISTERS
        if full or len(value) > MAX_VALUE:
            return self
        return Registers({**self.values, name: value})

    def dump(self) -> Message:
        """Return them as a message."""
        return dict(self.values)

    @classmethod
    def load(cls, message: Message) -> Registers:
        """Read them from a message, or raise ProtocolError."""
        return cls({check_name(name): wire.get_text(message, name) for name in message})


def check_name(name: str) -> str:
    """Return `name` if it may be a register's, else raise ProtocolError."""
    if not re.fullmatch(r"[A-Za-z0-9_./-]{1,64}", name):
        raise ProtocolError(f"{name!r:.80} is no name of a register")
    return name


def parse_number(value: str) -> int | None:
    """Return the whole number that `value` is, None if it is none."""
    return int(value) if re.fullmatch(r"-?[0-9]{1,19}", value) else None
