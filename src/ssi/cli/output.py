"""What commands print: rows, as a table or as JSON. stdout is the result, stderr is talk."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

talk = Console(stderr=True, highlight=False, soft_wrap=True)
"""For what a person wants to know and a program does not."""


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option --json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def print_json(result: object) -> None:
    """Print `result` as JSON."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def print_line(text: str) -> None:
    """Print one line of the result."""
    sys.stdout.write(text + "\n")


def _width(rows: Sequence[Mapping[str, str]], headings: Mapping[str, str]) -> int:
    return sum(
        2 + max([len(heading), *(len(row[key]) for row in rows)])
        for key, heading in headings.items()
    )


def print_table(rows: Sequence[Mapping[str, str]], headings: Mapping[str, str]) -> None:
    """Print `rows`, the columns being the keys of `headings`, in their order."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings.values():
        table.add_column(heading)
    for row in rows:
        table.add_row(*(row[key] for key in headings))
    # A table that wraps is no table: off a terminal, and for a long list of nodes, it is as wide as
    # it must be.
    Console(highlight=False, width=max(80, Console().width, _width(rows, headings))).print(table)
