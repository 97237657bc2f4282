"""`ssi stop`: take a cluster down in order; what has not left within the time is killed."""

from __future__ import annotations

import argparse
import re

from ssi.cli.output import add_json, print_json, print_line, talk
from ssi.cli.request import parse_optional_cluster
from ssi.common.errors import UsageError
from ssi.common.nodes import fold_nodes
from ssi.host.cluster.spec import choose_running
from ssi.host.cluster.stopping import stop_cluster


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("stop", help="stop a cluster", description=__doc__)
    parser.add_argument("cluster", metavar="CLUSTER", nargs="?")
    parser.add_argument("-t", "--timeout", metavar="S", default="20", help="seconds (default 20)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stop the cluster; return when nothing of it is left."""
    if not re.fullmatch("[0-9]{1,4}", args.timeout):
        raise UsageError(f"{args.timeout!r} is not a number of seconds")
    place = choose_running(parse_optional_cluster(args.cluster))
    killed = stop_cluster(place, within_s=int(args.timeout))
    if killed:
        talk(f"killed, as they did not leave in time: node {fold_nodes(killed)}")
    if args.json:
        print_json({"id": place.id, "killed": killed})
    else:
        print_line(f"Cluster {place.id} has been stopped")
    return 0
