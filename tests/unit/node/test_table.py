"""The table of processes."""

from __future__ import annotations

import os

from ssi.node.process.table import MAX_COMMAND, Row, parse_row

STAT = "40000 (odd) name) S 32769 40000 40000 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 1 0 77 0 0"
TICKS = os.sysconf("SC_CLK_TCK")


def test_a_process_is_what_the_kernel_tells_of_it() -> None:
    row = parse_row(STAT, 1001, b"sh\0-c\0two words\0")
    assert row == Row(40000, 32769, 1001, "S", 200 / TICKS, "sh -c two words")


def test_who_has_no_words_has_a_name() -> None:
    assert parse_row(STAT, 0, b"").command == "[odd) name]"


def test_a_command_is_cut_where_it_is_too_long() -> None:
    assert len(parse_row(STAT, 0, b"x" * 2 * MAX_COMMAND).command) == MAX_COMMAND
