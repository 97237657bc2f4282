"""`ssi build`: make the kernel, the ramdisk and the root, if they are stale."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ssi.cli.output import add_json, print_json, print_line
from ssi.cli.progress import render_time, reporting
from ssi.cli.table import print_table
from ssi.host.build.artifacts import (
    BuildOptions,
    BuildStatus,
    Report,
    build_all,
    build_kernel,
    build_ramdisk,
    build_root,
    list_status,
)

BUILDERS: Mapping[str, Callable[[BuildOptions, Report], object]] = {
    "kernel": build_kernel, "ramdisk": build_ramdisk, "root": build_root, "all": build_all,
}  # fmt: skip

SHOWN = {
    "kernel": ("kernel",), "ramdisk": ("userland", "ramdisk"), "root": ("userland", "root"),
    "all": ("kernel", "userland", "ramdisk", "root"),
}  # fmt: skip


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("build", help="build kernel, ramdisk and root", description=__doc__)
    parser.add_argument("what", nargs="?", choices=tuple(BUILDERS), default="all",
                        help="what to build (default all)")  # fmt: skip
    parser.add_argument("--source", type=Path, metavar="PATH",
                        help="kernel sources: a tarball or a tree, not Debian's")  # fmt: skip
    parser.add_argument("--suite", default="trixie", help="the root's Debian (default trixie)")
    parser.add_argument("--include", default="", metavar="PACKAGE,…", help="packages to add")
    parser.add_argument("--recipe", type=Path, metavar="FOLDER",
                        help="how another distribution becomes the root")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="build what is not stale, too")
    parser.add_argument("--status", action="store_true",
                        help="only say what would be built, and why")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def _options(args: argparse.Namespace) -> BuildOptions:
    words = args.include.replace(",", " ").split()
    return BuildOptions(
        source=args.source, suite=args.suite, include=tuple(words), recipe=args.recipe,
        force=args.force,
    )  # fmt: skip


def _build(what: str, options: BuildOptions) -> None:
    # Asked to end, we end what we started, as with Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    begin = time.monotonic()
    with reporting() as report:
        BUILDERS[what](options, report)
        report.note(f"done in {render_time(time.monotonic() - begin)}")


def _show_status(statuses: list[BuildStatus]) -> None:
    rows = [
        {"name": status.name, "size": f"{status.size / 1e6:.0f} MB",
         "state": status.stale or "fresh"}
        for status in statuses
    ]  # fmt: skip
    print_table(rows, {"name": "NAME", "state": "STATE", "size": "SIZE"})


def run(args: argparse.Namespace) -> int:
    """Build, or say what would be."""
    options = _options(args)
    if not args.status:
        _build(args.what, options)
    statuses = [
        status for status in list_status(options) if status.name.split()[0] in SHOWN[args.what]
    ]
    if args.json:
        print_json([dataclasses.asdict(status) for status in statuses])
    elif args.status:
        _show_status(statuses)
    else:
        for status in statuses:
            print_line(status.path)
    return 0
