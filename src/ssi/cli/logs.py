"""`ssi logs`: what the nodes' daemons and the supervisor have said, in order of time.

Each line has its time (UTC), its node, the number of that node's view of the cluster (0 before it
has one), the program, and what that said. Logs of stopped clusters and of nodes that died are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ssi.cli.output import print_json, print_line
from ssi.cli.request import parse_optional_cluster
from ssi.common.errors import UsageError
from ssi.common.logline import LogLine, render_time
from ssi.common.nodes import parse_nodes
from ssi.host.cluster.history import History, choose_logs

INTERRUPTED = 128 + signal.SIGINT
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FOLLOWED = 10
"""Lines of the past that --follow begins with."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("logs", help="show what nodes and supervisor said, in order",
                              description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-c", "--cluster", metavar="CLUSTER", default=None,
                        help="the cluster meant, running or stopped")  # fmt: skip
    parser.add_argument("-f", "--follow", action="store_true",
                        help="go on with what comes, until Ctrl-C")  # fmt: skip
    parser.add_argument("-n", "--lines", metavar="LINES", type=int, default=None,
                        help=f"only the last LINES (all; {FOLLOWED} with -f)")  # fmt: skip
    parser.add_argument("--since", metavar="WHEN", default=None,
                        help="only from then on: 90s, 10m, 2h, 1d ago, or a time as it is shown "
                        "(2026-11-21T07:33:10, UTC)")  # fmt: skip
    parser.add_argument("--json", action="store_true",
                        help="print JSON; with -f, an object a line")  # fmt: skip
    parser.add_argument("nodes", metavar="NODE", nargs="*",
                        help="only these nodes, as 1 2 or 1-3,7 (default: all, and the "
                        "supervisor)")  # fmt: skip
    parser.set_defaults(run=run)


def parse_since(text: str, now_s: float) -> int:
    """Return the time that `text` means, in microseconds, or raise UsageError."""
    if found := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return int((now_s - int(found[1]) * UNITS_S[found[2]]) * 1_000_000)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since {text}: that is no time", hint="say for example 10m or 2026-11-21T07:33"
        ) from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1_000_000)


def _row(line: LogLine) -> dict[str, Any]:
    return {
        "time": render_time(line.time_us), "node": line.node or None, "view": line.view,
        "source": line.source, "text": line.text,
    }  # fmt: skip


def _print_row(line: LogLine) -> None:
    print_line(json.dumps(_row(line)))


def _print_text(line: LogLine) -> None:
    print_line(str(line))


def _follow(history: History, since_us: int, show: Callable[[LogLine], None]) -> int:
    try:
        for lines in history.follow(sys.stdout.fileno()):
            for line in lines:
                if line.time_us >= since_us:
                    show(line)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def run(args: argparse.Namespace) -> int:
    """Show logs."""
    nodes = frozenset[int]().union(*map(parse_nodes, args.nodes))
    if args.lines is not None and args.lines < 0:
        raise UsageError(f"-n {args.lines}: that is no number of lines")
    since_us = 0 if args.since is None else parse_since(args.since, time.time())
    place = choose_logs(parse_optional_cluster(args.cluster))
    with contextlib.closing(History(place, nodes)) as history:
        return _show(history, args, since_us)


def _show(history: History, args: argparse.Namespace, since_us: int) -> int:
    lines = [line for line in history.read_all() if line.time_us >= since_us]
    last = FOLLOWED if args.follow and args.since is None else len(lines)
    last = last if args.lines is None else args.lines
    lines = lines[max(0, len(lines) - last) :]
    if args.json and not args.follow:
        print_json([_row(line) for line in lines])
        return 0
    show = _print_row if args.json else _print_text
    for line in lines:
        show(line)
    sys.stdout.flush()
    return _follow(history, since_us, show) if args.follow else 0
