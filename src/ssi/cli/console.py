"""`ssi console`: attach to a node's console. Ctrl-] detaches; the node does not notice."""

from __future__ import annotations

import argparse
import sys

from ssi.cli.output import talk
from ssi.cli.request import cluster_option, parse_optional_cluster
from ssi.common.errors import NodeLost
from ssi.common.nodes import parse_node
from ssi.host.cluster.attach import attach_console
from ssi.host.cluster.spec import choose_running


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("console", help="attach to a node's console", description=__doc__)
    cluster_option(parser)
    parser.add_argument("node", metavar="NODE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Attach until the person leaves or the node dies."""
    node = parse_node(args.node)
    place = choose_running(parse_optional_cluster(args.cluster))
    if sys.stdin.isatty():
        talk(f"Console of node{node}; Ctrl-] detaches")
    if attach_console(place, node):
        raise NodeLost(f"node{node} has ended")
    if sys.stdin.isatty():
        talk(f"\nDetached from node{node}")
    return 0
