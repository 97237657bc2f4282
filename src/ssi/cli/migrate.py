"""`ssi migrate`: move processes of a cluster to a node, wherever they are.

It is done by migrate of the lowest node that is up, whose error lines and exit status these are.
"""

from __future__ import annotations

import argparse

from ssi.cli.kill import parse_pid
from ssi.cli.request import cluster_option, parse_optional_cluster
from ssi.common.nodes import parse_node
from ssi.host.cluster.processes import list_ready
from ssi.host.cluster.remote import run_command
from ssi.host.cluster.spec import choose_running


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("migrate", help="move processes to another node",
                              description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    cluster_option(parser)
    parser.add_argument("-w", "--whole", action="store_true",
                        help="with all their memory before they go on")  # fmt: skip
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("-g", "--group", dest="kind", action="store_const", const="-g",
                      help="PID is a process group's number: all that are in it")  # fmt: skip
    whom.add_argument("-s", "--session", dest="kind", action="store_const", const="-s",
                      help="PID is a session's number: all that are in it")  # fmt: skip
    parser.add_argument("node", metavar="NODE", help="where they are to go on")
    parser.add_argument("pids", metavar="PID", nargs="+", help="as `ssi ps` shows it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Move them; return migrate's exit status."""
    options = [*(["-w"] if args.whole else []), *([args.kind] if args.kind else [])]
    pids = [str(parse_pid(pid)) for pid in args.pids]
    argv = ["migrate", *options, str(parse_node(args.node)), *pids]
    place = choose_running(parse_optional_cluster(args.cluster))
    return run_command(place, min(list_ready(place)), argv, ramdisk=False, within_s=None)
