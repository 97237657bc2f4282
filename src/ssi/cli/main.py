"""The command `ssi`: parse, dispatch, print an expected error, exit with its status."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from ssi.common.errors import SsiError

VERBS = (
    "build", "start", "add", "rm", "stop", "ls", "console", "exec", "ps", "kill", "migrate", "logs",
    "net", "doctor", "clean", "completion",
)  # fmt: skip
"""In the order of `ssi -h`; each is a module here."""

INTERRUPTED = 128 + signal.SIGINT


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all verbs, from which completion and the manual are made, or of one.

    All of the modules take half a second to load, which a script with many commands would notice.
    """
    parser = argparse.ArgumentParser(
        prog="ssi", description="Run single system image clusters of virtual nodes on this machine."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in [only] if only else VERBS:
        importlib.import_module(f"ssi.cli.{verb}").add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    args = make_parser(words[0] if words and words[0] in VERBS else None).parse_args(words)
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
