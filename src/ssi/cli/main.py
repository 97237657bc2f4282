"""The command `ssi`: parse, dispatch, print an expected error, exit with its status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from ssi.cli import (
    add,
    build,
    clean,
    completion,
    console,
    doctor,
    kill,
    logs,
    ls,
    migrate,
    net,
    ps,
    rm,
    start,
    stop,
)
from ssi.cli import exec as exec_
from ssi.common.errors import SsiError

VERBS = (
    build,
    start,
    add,
    rm,
    stop,
    ls,
    console,
    exec_,
    ps,
    kill,
    migrate,
    logs,
    net,
    doctor,
    clean,
    completion,
)

INTERRUPTED = 128 + signal.SIGINT


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; completion and the manual are made from it, too."""
    parser = argparse.ArgumentParser(
        prog="ssi", description="Run single system image clusters of virtual nodes on this machine."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    args = make_parser().parse_args(argv)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see __main__
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status: int = args.run(args)
    except SsiError as error:
        sys.stderr.write(f"ssi: {error}\n")
        if error.hint:
            sys.stderr.write(f"ssi: hint: {error.hint}\n")
        return error.exit_status
    except KeyboardInterrupt:
        # What asyncio was just setting up complains as it is thrown away.
        sys.unraisablehook = lambda _: None
        warnings.simplefilter("ignore")
        sys.stderr.write("ssi: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; what is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status
