"""What commands print."""

from __future__ import annotations

import sys

import pytest

from ssi.cli.ps import render_command
from ssi.cli.table import print_table

HEADINGS = {"pid": "PID", "command": "COMMAND"}


def test_a_table_shows_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"pid": "5", "command": "[red]"}, {"pid": "99999", "command": ":+1: " + "x" * 200}]
    print_table(rows, HEADINGS, numbers={"pid"}, cut=True)
    assert capsys.readouterr().out.splitlines() == [
        "  PID  COMMAND", "    5  [red]", "99999  :+1: " + "x" * 200
    ]  # fmt: skip


def test_a_terminal_shows_what_it_has_room_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    rows = [{"pid": "12345", "command": letter * 200} for letter in ("x", "\u5b57")]
    print_table(rows, HEADINGS, cut=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["12345  " + "x" * 93, "12345  " + "\u5b57" * 46]


def test_a_command_is_one_line() -> None:
    assert render_command("sh -c a\nb\t\x1b[2J \u5b57") == "sh -c a?b??[2J \u5b57"
