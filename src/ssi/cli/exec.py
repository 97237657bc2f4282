"""`ssi exec`: run a command in a node, without a terminal; streams and exit status are passed on.

Exit status: the command's own (128 + N when signal N ended it); 69 when the node was lost or is not
up; 124 after the time of --timeout.
"""

from __future__ import annotations

import argparse

from ssi.cli.request import cluster_option, parse_optional_cluster
from ssi.common.errors import UsageError
from ssi.common.nodes import parse_node
from ssi.host.cluster.remote import run_command
from ssi.host.cluster.spec import choose_running


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("exec", help="run a command in a node", description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    cluster_option(parser)
    parser.add_argument("-t", "--timeout", metavar="S", type=float, help="give up after S seconds")
    parser.add_argument("--ramdisk", action="store_true",
                        help="run it in the ramdisk, not in the userland")  # fmt: skip
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("argv", metavar="-- CMD", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    node = parse_node(args.node)
    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise UsageError("no command is given", hint="ssi exec NODE -- CMD…")
    place = choose_running(parse_optional_cluster(args.cluster))
    return run_command(place, node, argv, ramdisk=args.ramdisk, within_s=args.timeout)
