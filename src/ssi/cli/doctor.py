"""`ssi doctor`: what this machine lacks for clusters to be built and run, and the remedies.

The exit status is 1 when something is missing that is needed.
"""

from __future__ import annotations

import argparse
import dataclasses

from ssi.cli.output import add_json, print_json, print_line
from ssi.host.doctor import Check, State, examine_host


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("doctor", help="say what this machine lacks", description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def _render(check: Check) -> str:
    remedy = f" → {check.remedy}" if check.remedy else ""
    return f"{check.state.value:8}  {check.need:5}  {check.name:22}  {check.found}{remedy}"


def run(args: argparse.Namespace) -> int:
    """Print all requirements; return 1 when a needed one is not met."""
    checks = []
    for check in examine_host():
        checks.append(check)
        if not args.json:
            print_line(_render(check))
    if args.json:
        print_json([{**dataclasses.asdict(c), "state": c.state.value} for c in checks])
    return int(any(check.state is State.MISSING for check in checks))
