"""Lines of logs: written, read again, and harmless whatever is in them."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.logline import MAX_TEXT, LineFormatter, LogLine, parse_line, split_text

lines = st.builds(
    LogLine, time_us=st.integers(0, 4 * 10**15), node=st.integers(0, 127),
    view=st.integers(0, 10**9), source=st.sampled_from(["ssid", "dlm_controld"]),
    text=st.text().map(lambda text: split_text(text)[0]),
)  # fmt: skip


@given(lines)
def test_a_line_survives_its_file(line: LogLine) -> None:
    assert parse_line(str(line)) == line
    assert len(str(line).splitlines()) == 1
    assert len(f"{line}\n".encode()) <= 4096


def test_what_it_looks_like() -> None:
    line = LogLine(1_795_247_379_000_001, 3, 2, "corosync", "notice  [MAIN  ] ready")
    assert str(line) == (
        "2026-11-21T07:49:39.000001Z node3 view2 corosync: notice  [MAIN  ] ready"
    )  # fmt: skip
    assert str(LogLine(0, 0, 0, "supervisor", "")) == (
        "1970-01-01T00:00:00.000000Z host view0 supervisor: "
    )


@pytest.mark.parametrize("text", [
    "", "hello", "2026-11-21T07:49:39.000001Z node3 view2 corosync",
    "2026-13-21T07:49:39.000001Z node3 view2 corosync: x",
    "2026-11-21T07:49:39.000001Z node128 view2 corosync: x",
    "2026-11-21T07:49:39.000001Z node3 view2 Corosync: x",
    "2026-11-21 07:49:39.000001Z node3 view2 corosync: x",
    "0000-11-21T07:49:39.000001Z node3 view2 corosync: x",
])  # fmt: skip
def test_what_is_no_line(text: str) -> None:
    assert parse_line(text) is None


@given(st.text())
def test_what_is_said_is_harmless(text: str) -> None:
    for line in split_text(text):
        assert line.replace("\t", "").isprintable()
        assert len(line) <= MAX_TEXT


def test_a_traceback_is_a_line_for_each_of_its_lines() -> None:
    try:
        raise OSError("a\nb\x1b[2J")
    except OSError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "oh %s", ("no",), sys.exc_info())
    made = LineFormatter(2, "ssid").lines(record)
    assert made[0].text == "ERROR x: oh no"
    assert [line.text for line in made][-2:] == ["OSError: a", "b\\x1b[2J"]
    assert {(line.node, line.source, line.time_us) for line in made} == {
        (2, "ssid", made[0].time_us)
    }
