"""`ssi clean`: remove what a crash of this machine, or of a supervisor, left behind.

Running clusters are not touched, and roots of stopped ones are kept unless --kept says otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses

from ssi.cli.output import add_json, print_json, print_line
from ssi.host.cluster.leftovers import forget_kept, remove_leftovers
from ssi.host.cluster.spec import parse_cluster

ALL = "all"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("clean", help="remove what a crash left", description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-f", "--force", action="store_true",
                        help="first end supervisors that hang")  # fmt: skip
    parser.add_argument("--kept", metavar="CLUSTER", nargs="?", const=ALL, default=None,
                        help="also forget the root of a stopped cluster, or of all")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove leftovers; print each."""
    cluster = parse_cluster(args.kept) if args.kept not in {None, ALL} else None
    removed = []
    for one in remove_leftovers(force=args.force):
        removed.append(one)
        if not args.json:
            print_line(f"cluster {one.cluster}: removed {one.what}")
    for one in forget_kept(cluster) if args.kept else ():
        removed.append(one)
        if not args.json:
            print_line(f"cluster {one.cluster}: removed {one.what}")
    if args.json:
        print_json([dataclasses.asdict(one) for one in removed])
    return 0
