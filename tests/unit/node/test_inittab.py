"""inittab.ssi: what is a line, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.host.paths import TOP
from ssi.node.state.inittab import (
    ACTIONS,
    CONSOLE,
    Entry,
    dump_entries,
    load_entries,
    parse_inittab,
)


def test_reads_lines_as_inittab_has_them() -> None:
    table = parse_inittab(
        "# comment\n\nid:2:initdefault:\n"
        "si::sysinit:/etc/rc.d/rc.sysinit\n"
        "l2:23:wait@1-2:/etc/init.d/rc 2 a:b\n"
        "co:2345:respawn@all:+/sbin/agetty tty0\n"
    )
    assert table.faults == ()
    assert table.default_level == "2"
    assert table.entries[1:] == (
        Entry("si", "", "sysinit", "init", "/etc/rc.d/rc.sysinit"),
        Entry("l2", "23", "wait", "1-2", "/etc/init.d/rc 2 a:b"),
        Entry("co", "2345", "respawn", "all", "/sbin/agetty tty0"),
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "id:runlevels:action:process"),
        ("a b:3:wait:x", "no id"),
        ("../x:3:wait:x", "no id"),
        ("x:7:wait:x", "no runlevels"),
        ("x:3:explode:x", "no action"),
        ("x:3:wait@nowhere:x", "nowhere"),
        ("x:3:wait:", "no process"),
        ("x:6:initdefault:", "to start in"),
        ("x:35:initdefault:", "to start in"),
    ],
)
def test_tells_which_line_is_none_and_why(line: str, why: str) -> None:
    table = parse_inittab(f"a:3:once:true\n{line}\nb:3:once:true\n")
    assert [entry.id for entry in table.entries] == ["a", "b"]
    (fault,) = table.faults
    assert fault.startswith("line 2: ")
    assert why in fault


def test_of_two_lines_with_one_id_the_first_counts() -> None:
    table = parse_inittab("a:3:once:true\na:3:once:false\n")
    assert [entry.command for entry in table.entries] == ["true"]
    assert "twice" in table.faults[0]


def test_what_we_install_has_no_fault() -> None:
    text = (TOP / "image/rootfs/tree/etc/inittab.ssi").read_text()
    table = parse_inittab(text)
    assert table.faults == parse_inittab(CONSOLE).faults == ()
    assert parse_inittab(CONSOLE).entries[0] in table.entries
    assert table.default_level == "3"


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    table = parse_inittab(text)
    entries = {"entries": dump_entries(table.entries)}
    assert load_entries(wire.decode(wire.encode(entries)), "entries") == table.entries


@given(
    st.fixed_dictionaries(
        {
            "id": st.text(max_size=20) | st.just("../../etc"),
            "levels": st.text(max_size=3),
            "action": st.sampled_from(ACTIONS),
            "where": st.text(max_size=5),
            "command": st.text(max_size=5),
        }
    )
)
def test_what_comes_from_other_nodes_is_checked(item: dict[str, str]) -> None:
    try:
        (entry,) = load_entries({"entries": [item]}, "entries")
    except ProtocolError:
        return
    assert "/" not in entry.id
    assert entry.is_for(1, 1) in {True, False}
