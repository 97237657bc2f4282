"""`ssi start`: boot a cluster and return when its nodes are members and have mounted the root."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ssi.cli import windows
from ssi.cli.output import add_json, print_json, print_line, talk
from ssi.cli.request import show_phase
from ssi.common.errors import SsiError, UsageError
from ssi.common.nodes import MAX_NODE
from ssi.host.build.artifacts import find_artifacts
from ssi.host.cluster.launch import StartRequest, find_free_cluster, start_cluster
from ssi.host.cluster.spec import FIRST_ID, parse_cluster
from ssi.host.config import Config, read_config
from ssi.host.net.uplink import parse_published

TOKEN_MS = 1000
LARGE = 16
LARGE_TOKEN_MS = 5000
"""So many kernels share few processors: while they boot, some are silent for seconds."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("start", help="start a cluster", description=__doc__)
    parser.add_argument("count", metavar="N", nargs="?", default="3", help="nodes 1 to N (3)")
    parser.add_argument("-r", "--root", type=Path, help="root image to copy")
    parser.add_argument("-s", "--swap", metavar="MB", default="64", help="swap of each node")
    parser.add_argument("-k", "--kernel", type=Path, help="UML kernel")
    parser.add_argument("-i", "--initrd", type=Path, metavar="RAMDISK", help="ramdisk")
    parser.add_argument("-m", "--memory", metavar="MB", default="160", help="memory of each node")
    parser.add_argument("-c", "--cluster", default=None, help=f"its number (default {FIRST_ID})")
    parser.add_argument("--new", action="store_true", help="take a cluster number not used so far")
    parser.add_argument("--fresh", action="store_true", help="discard the root it has kept")
    parser.add_argument("-p", "--publish", metavar="[ADDR:]PORT[:NODEPORT][@NODE]",
                        action="append", default=[],
                        help="lead a port of this host to one of a node (1)")  # fmt: skip
    parser.add_argument("--token", metavar="MS", default=None,
                        help=f"time after which a silent node is suspected ({TOKEN_MS}; "
                             f"{LARGE_TOKEN_MS} for more than {LARGE} nodes)")  # fmt: skip
    parser.add_argument("--console", choices=("auto", "none", "xterm", "tmux"), default="auto",
                        help="windows for the consoles")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def _number(text: str, what: str, low: int, high: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UsageError(f"{what}: {text!r} is not from {low} to {high}")
    return int(text)


def _image(option: Path | None, configured: Path | None, built: Path | None, what: str) -> Path:
    path = option or configured or built
    if path is None:
        raise SsiError(f"there is no {what} yet", hint=f"make it with `ssi build {what}`")
    return path


def _request(args: argparse.Namespace, config: Config) -> StartRequest:
    for text in args.publish:
        parse_published(text)
    count = _number(args.count, "number of nodes", 1, MAX_NODE)
    token = args.token or str(TOKEN_MS if count <= LARGE else LARGE_TOKEN_MS)
    built = find_artifacts()
    if args.new:
        cluster = find_free_cluster()
    else:
        cluster = parse_cluster(args.cluster) if args.cluster else FIRST_ID
    return StartRequest(
        nodes=tuple(range(1, count + 1)),
        kernel=_image(args.kernel, config.kernel, built.kernel, "kernel"),
        ramdisk=_image(args.initrd, config.ramdisk, built.ramdisk, "ramdisk"),
        root=_image(args.root, config.root, built.root, "root"),
        cluster=cluster,
        memory_mib=_number(args.memory, "memory", 96, 65536),
        swap_mib=_number(args.swap, "swap", 1, 65536),
        token_ms=_number(token, "token time", 100, 60000),
        fresh=args.fresh, publish=tuple(args.publish),
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Start the cluster."""
    config = read_config()
    for note in config.notes:
        talk(note)
    request = _request(args, config)
    windows.check(args.console)
    explicit_root = bool(args.root or config.root)
    place, notes = start_cluster(request, show_phase, explicit_root=explicit_root)
    for note in notes:
        talk(note)
    count = len(request.nodes)
    if args.json:
        print_json({"id": place.id, "nodes": list(request.nodes)})
    else:
        plural = "node" if count == 1 else "nodes"
        print_line(f"Cluster {place.id} has been started with {count} {plural}")
    windows.open_windows(place.id, request.nodes, args.console)
    return 0
