"""`ssi kill`: send a signal to processes of a cluster, whichever node they are on.

It is done by kill(1) of the lowest node that is up, whose error lines and exit status these are.
"""

from __future__ import annotations

import argparse
import re
import signal

from ssi.cli.request import cluster_option, parse_optional_cluster
from ssi.common.errors import UsageError
from ssi.host.cluster.processes import list_ready
from ssi.host.cluster.remote import run_command
from ssi.host.cluster.spec import choose_running

FIRST_PID = 32768


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("kill", help="send a signal to processes of any node",
                              description=__doc__,
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    cluster_option(parser)
    parser.add_argument("-s", "--signal", metavar="SIGNAL", default="TERM",
                        help="its name or number (default TERM; 0 only asks)")  # fmt: skip
    parser.add_argument("pids", metavar="PID", nargs="+", help="as `ssi ps` shows it")
    parser.set_defaults(run=run)


def parse_signal(text: str) -> int:
    """Return the number of a signal, or raise UsageError."""
    if re.fullmatch("[0-9]{1,2}", text) and int(text) < signal.NSIG:
        return int(text)
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise UsageError(f"{text!r} is no signal", hint="say for example HUP or 1") from None


def parse_pid(text: str) -> int:
    """Return the PID in `text`, or raise UsageError: others than people's are each node's own."""
    if not re.fullmatch("[0-9]{1,7}", text):
        raise UsageError(f"{text!r} is no PID", hint="`ssi ps` shows them")
    if int(text) < FIRST_PID:
        raise UsageError(f"process {text} is each node's own", hint="ssi exec NODE -- kill PID")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Send the signal; return kill's exit status."""
    number, pids = parse_signal(args.signal), [str(parse_pid(pid)) for pid in args.pids]
    place = choose_running(parse_optional_cluster(args.cluster))
    argv = ["kill", "-s", str(int(number)), "--", *pids]
    return run_command(place, min(list_ready(place)), argv, ramdisk=False, within_s=None)
