"""`ssi rm`: crash nodes, as a power failure would. The other nodes are not told."""

from __future__ import annotations

import argparse

from ssi.cli.output import add_json, print_json
from ssi.cli.request import ask, split_cluster


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("rm", help="crash nodes", description=__doc__)
    parser.add_argument("words", metavar="[CLUSTER] NODE", nargs="+")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Crash the nodes; return when nothing of them is left."""
    cluster, nodes = split_cluster(args.words)
    answer = ask(cluster, {"do": "rm", "nodes": nodes})
    if args.json:
        print_json({"nodes": answer["nodes"]})
    return 0
