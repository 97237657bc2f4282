"""What commands print. stdout is the result, stderr is talk."""

from __future__ import annotations

import argparse
import json
import sys


def talk(text: str) -> None:
    """Say what a person wants to know and a program does not."""
    sys.stderr.write(text + "\n")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option --json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def print_json(result: object) -> None:
    """Print `result` as JSON."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def print_line(text: str) -> None:
    """Print one line of the result."""
    sys.stdout.write(text + "\n")
