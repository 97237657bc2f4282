"""ssi net: partitions, losses and delays of the virtual network, on purpose."""

from __future__ import annotations

import argparse

from ssi.cli.output import add_json, print_json, print_line
from ssi.cli.request import ask, cluster_option, parse_optional_cluster
from ssi.host.net.faults import Faults, parse_faults, render_faults

DESCRIPTION = """\
  partition 1,2 3   frames pass only inside a group; the nodes named in none are one more
  drop 1 2 10%      lose frames between two nodes, both ways (or: drop all 10%)
  delay all 50ms±10ms
  heal              no faults any more
  show              what is in effect
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `net`."""
    parser = verbs.add_parser(
        "net",
        help="cut, slow down and heal the virtual network",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="WORD", help="see above; show if there is none"
    )
    _add_options(parser)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    cluster_option(parser)
    add_json(parser)


def _read_words(args: argparse.Namespace) -> list[str]:
    """Return the words without the options among them, which are put into `args`.

    argparse takes options between the words of a verb only for a parser that has no verbs.
    """
    parser = argparse.ArgumentParser(prog="ssi net")
    parser.add_argument("words", nargs="*")
    _add_options(parser)
    given = parser.parse_intermixed_args(args.words)
    args.cluster = given.cluster or args.cluster
    args.json = given.json or args.json
    return given.words or ["show"]


def run(args: argparse.Namespace) -> int:
    """Change or show the faults of a cluster's network."""
    words = _read_words(args)
    cluster = parse_optional_cluster(args.cluster)
    if words != ["show"]:
        # Before anything is asked of anybody: a mistake needs no running cluster to be told.
        parse_faults(words, Faults())
    answer = ask(cluster, {"do": "net"})
    if words != ["show"]:
        faults = parse_faults(words, Faults.from_json(answer.get("faults")))
        answer = ask(cluster, {"do": "net", "faults": faults.to_json()})
    if args.json:
        print_json(answer)
        return 0
    for line in render_faults(Faults.from_json(answer.get("faults"))):
        print_line(line)
    return 0
