"""Registers: small values, the same on every member."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.node.state.registers import MAX_REGISTERS, MAX_VALUE, Registers

names = st.from_regex(r"[A-Za-z0-9_./-]{1,64}", fullmatch=True)


def apply(registers: Registers, do: str, **fields: object) -> Registers:
    return registers.apply({"do": do, **fields})


def test_set_add_delete() -> None:
    registers = apply(Registers(), "set", name="a", value="x y")
    registers = apply(registers, "add", name="n", amount=5)
    registers = apply(registers, "add", name="n", amount=-7)
    assert registers.values == {"a": "x y", "n": "-2"}
    assert apply(registers, "add", name="a", amount=1) == registers, "a is no number"
    assert apply(registers, "delete", name="a").values == {"n": "-2"}
    assert apply(registers, "delete", name="b") == registers


def test_there_are_limits() -> None:
    registers = Registers()
    for number in range(MAX_REGISTERS + 1):
        registers = apply(registers, "set", name=f"r{number}", value="")
    assert len(registers.values) == MAX_REGISTERS
    assert apply(registers, "set", name="r0", value="y").values["r0"] == "y"
    too_long = "x" * (MAX_VALUE + 1)
    assert apply(registers, "set", name="r0", value=too_long) == registers


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 65, "a=b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ProtocolError):
        apply(Registers(), "set", name=name, value="")


@given(st.dictionaries(names, st.text(max_size=20), max_size=20))
def test_they_travel(values: dict[str, str]) -> None:
    registers = Registers(values)
    assert Registers.load(wire.decode(wire.encode(registers.dump()))) == registers


@given(st.lists(st.integers(-(2**62), 2**62)))
def test_sums(amounts: list[int]) -> None:
    registers = apply(Registers(), "add", name="n", amount=0)
    total = 0
    for amount in amounts:
        registers = apply(registers, "add", name="n", amount=amount)
        total += amount
        if abs(total) >= 10**19:
            return  # no number any more, and so it stays as it is
    assert registers.values["n"] == str(total)
