"""`ssi ps`: the processes of people on all nodes of a cluster, each once, where it runs.

What each node has for itself is not shown without --all: its kernel's threads, the daemons of its
ramdisk (both with PIDs below 32768, another process's on each node), and what serves them.
A terminal shows as much of a command as it has room for.
"""

from __future__ import annotations

import argparse
import dataclasses

from ssi.cli.output import add_json, print_json, talk
from ssi.cli.request import parse_optional_cluster
from ssi.cli.table import print_table
from ssi.host.cluster.processes import list_processes
from ssi.host.cluster.spec import choose_running

HEADINGS = {
    "pid": "PID", "ppid": "PPID", "node": "NODE", "user": "USER", "state": "STAT", "time": "TIME",
    "command": "COMMAND",
}  # fmt: skip

NUMBERS = {"pid", "ppid", "node", "time"}

UNAVAILABLE = 69


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("ps", help="list the processes of all nodes", description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("cluster", metavar="CLUSTER", nargs="?")
    parser.add_argument("-a", "--all", action="store_true",
                        help="also what each node has for itself: threads, daemons")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def render_time(time_s: float) -> str:
    """Return a time of a processor as ps shows it: minutes and seconds."""
    minutes, seconds = divmod(int(time_s), 60)
    return f"{minutes}:{seconds:02}"


def render_command(command: str) -> str:
    """Return a command as one line, whatever is in it."""
    return "".join(each if each.isprintable() else "?" for each in command)


def run(args: argparse.Namespace) -> int:
    """List the processes; return 69 if a node does not tell its."""
    place = choose_running(parse_optional_cluster(args.cluster))
    found, silent = list_processes(place, everything=args.all)
    rows = [dataclasses.asdict(process) for process in found]
    if args.json:
        print_json(rows)
    else:
        print_table(
            [{**{key: str(value) for key, value in row.items()},
              "time": render_time(row["time_s"]),
              "command": render_command(row["command"])} for row in rows],
            HEADINGS, numbers=NUMBERS, cut=True,
        )  # fmt: skip
    for node, why in silent.items():
        talk(f"ssi: node{node}: {why}")
    return UNAVAILABLE if silent else 0
