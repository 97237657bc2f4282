"""Rows as a table for people. Apart, as rich takes longer to load than most verbs to run."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table

from ssi.cli.output import print_line


def _width(rows: Sequence[Mapping[str, str]], headings: Mapping[str, str]) -> int:
    return sum(
        2 + max([cell_len(heading), *(cell_len(row[key]) for row in rows)])
        for key, heading in headings.items()
    )


def _cut_last(
    rows: Sequence[Mapping[str, str]], headings: Mapping[str, str], width: int
) -> Sequence[Mapping[str, str]]:
    """Return `rows` with as much of the last column as has room in a table of `width`."""
    *others, last = headings
    room = max(len(headings[last]), width - _width(rows, {key: headings[key] for key in others}))
    return [{**row, last: next(iter(chop_cells(row[last], room)), "")} for row in rows]


def print_table(
    rows: Sequence[Mapping[str, str]], headings: Mapping[str, str], *,
    numbers: Collection[str] = (), cut: bool = False,
) -> None:  # fmt: skip
    """Print `rows`, the columns being the keys of `headings`, in their order.

    Those of `numbers` are flush right. With `cut`, what a terminal has no room for in the last one
    is left out.
    """
    if cut and sys.stdout.isatty():
        rows = _cut_last(rows, headings, Console().width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key, heading in headings.items():
        table.add_column(heading, justify="right" if key in numbers else "left")
    for row in rows:
        table.add_row(*(row[key] for key in headings))
    # A table that wraps is no table: off a terminal, and for a long list of nodes, it is as wide as
    # it must be. What is in brackets or between colons is only text.
    width = max(80, Console().width, _width(rows, headings))
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        print_line(line.rstrip())
