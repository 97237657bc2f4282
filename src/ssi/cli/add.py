"""`ssi add`: boot more nodes of a running cluster; those that are up are passed over."""

from __future__ import annotations

import argparse

from ssi.cli import windows
from ssi.cli.output import add_json, print_json
from ssi.cli.request import show_phase, split_cluster
from ssi.host.cluster import client
from ssi.host.cluster.spec import choose_running


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("add", help="boot more nodes", description=__doc__)
    parser.add_argument("words", metavar="[CLUSTER] NODE", nargs="+")
    parser.add_argument("--console", choices=("auto", "none", "xterm", "tmux"), default="auto",
                        help="windows for the consoles")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Boot the nodes; return when they are up."""
    cluster, nodes = split_cluster(args.words)
    windows.check(args.console)
    place = choose_running(cluster)
    answer = client.ask(place, {"do": "add", "nodes": nodes}, show_phase)
    if args.json:
        print_json({"id": place.id, "nodes": answer["nodes"]})
    windows.open_windows(place.id, answer["nodes"], args.console)
    return 0
