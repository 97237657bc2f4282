"""`ssi ps`: the processes of people on all nodes of a cluster, each once, where it runs.

Those below PID 32768 are each node's own, its kernel's threads and the daemons of its ramdisk. They
are not shown.
"""

from __future__ import annotations

import argparse
import dataclasses

from ssi.cli.output import add_json, print_json, print_table, talk
from ssi.cli.request import parse_optional_cluster
from ssi.host.cluster.processes import list_processes
from ssi.host.cluster.spec import choose_running

HEADINGS = {
    "pid": "PID", "ppid": "PPID", "node": "NODE", "user": "USER", "state": "STAT", "time": "TIME",
    "command": "COMMAND",
}  # fmt: skip

UNAVAILABLE = 69


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("ps", help="list the processes of all nodes", description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("cluster", metavar="CLUSTER", nargs="?")
    add_json(parser)
    parser.set_defaults(run=run)


def render_time(time_s: float) -> str:
    """Return a time of a processor as ps shows it: minutes and seconds."""
    minutes, seconds = divmod(int(time_s), 60)
    return f"{minutes}:{seconds:02}"


def run(args: argparse.Namespace) -> int:
    """List the processes; return 69 if a node does not tell its."""
    found, silent = list_processes(choose_running(parse_optional_cluster(args.cluster)))
    rows = [dataclasses.asdict(process) for process in found]
    if args.json:
        print_json(rows)
    else:
        print_table(
            [{**{key: str(value) for key, value in row.items()},
              "time": render_time(row["time_s"])} for row in rows],
            HEADINGS,
        )  # fmt: skip
    for node, why in silent.items():
        talk.print(f"ssi: node{node}: {why}", markup=False)
    return UNAVAILABLE if silent else 0
