"""`ssi ls`: the running clusters, their nodes and when they were started."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ssi.cli.output import add_json, print_json, print_line
from ssi.common.errors import SsiError
from ssi.common.nodes import fold_nodes
from ssi.host.cluster.client import ask
from ssi.host.cluster.spec import ClusterPlace, list_kept, list_running


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("ls", help="list the clusters", description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each node")
    parser.add_argument("-a", "--all", action="store_true",
                        help="also those that are stopped and have kept their root")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def _status(place: ClusterPlace) -> dict[str, Any]:
    try:
        answer = ask(place, {"do": "status"})
    except SsiError as error:
        return {"id": place.id, "state": f"crashed: {error}", "started": None, "nodes": []}
    return {
        "id": place.id, "state": "running",
        "started": answer["started"], "nodes": answer["nodes"],
    }  # fmt: skip


def _collect(*, kept: bool) -> list[dict[str, Any]]:
    running = list_running()
    clusters = [_status(place) for place in running]
    if kept:
        clusters += [
            {"id": place.id, "state": "stopped", "started": None, "nodes": []}
            for place in list_kept()
            if place not in running
        ]
    return clusters


def _date(started: float | None) -> str:
    return time.strftime("%b %d %Y, %I:%M:%S %p %Z", time.localtime(started)) if started else "-"


def run(args: argparse.Namespace) -> int:
    """List the clusters."""
    clusters = _collect(kept=args.all)
    if args.json:
        print_json(clusters)
        return 0
    if not clusters:
        print_line("No clusters have been found")
        return 0
    from ssi.cli.table import print_table  # noqa: PLC0415 - a script with --json need not wait for it

    print_line("The following clusters have been found:")
    rows = []
    for cluster in clusters:
        nodes = " ".join(str(node["node"]) for node in cluster["nodes"])
        state = cluster["state"]
        shown = nodes if state == "running" else state
        rows.append({"id": str(cluster["id"]), "nodes": shown, "date": _date(cluster["started"])})
    print_table(rows, {"id": "ID", "nodes": "Nodes", "date": "Date started"})
    if args.verbose:
        print_line("")
        print_table(_list_nodes(clusters), {
            "cluster": "ID", "node": "Node", "state": "State", "ring": "Ring", "quorate": "Quorate",
            "view": "View", "init": "Init", "pid": "Process", "trouble": "Trouble",
        })  # fmt: skip
    return 0


def _list_nodes(clusters: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "cluster": str(cluster["id"]), "node": str(node["node"]), "state": node["state"],
            "ring": fold_nodes(node["ring"]), "quorate": "yes" if node["quorate"] else "no",
            "view": f"{node['view']}: {fold_nodes(node['members'])}",
            "init": "*" if node["init_node"] == node["node"] else "",
            "pid": str(node["pid"]), "trouble": node["trouble"],
        }
        for cluster in clusters
        for node in cluster["nodes"]
    ]  # fmt: skip
