"""What the verbs about running clusters share: which cluster is meant, and asking it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ssi.cli.output import talk
from ssi.common.errors import UsageError
from ssi.common.nodes import parse_node, parse_nodes
from ssi.common.wire import Message
from ssi.host.cluster import client
from ssi.host.cluster.spec import choose_running, parse_cluster


def cluster_option(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option -c/--cluster."""
    parser.add_argument(
        "-c", "--cluster", metavar="CLUSTER", type=str, default=None,
        help="the cluster meant; needed when several are running",
    )  # fmt: skip


def ask(cluster: int | None, request: Mapping[str, object]) -> dict[str, Any]:
    """Ask the cluster meant, and return its answer."""
    return client.ask(choose_running(cluster), request)


def parse_optional_cluster(text: str | None) -> int | None:
    """Return the cluster number in `text`, None for none."""
    return None if text is None else parse_cluster(text)


def split_cluster(words: Sequence[str]) -> tuple[int | None, list[int]]:
    """Return what ``[CLUSTER] NODE…`` means; a cluster number has five digits, a node's not."""
    cluster = None
    if words and words[0].isascii() and words[0].isdigit() and len(words[0]) == 5:
        cluster, words = parse_cluster(words[0]), words[1:]
    if not words:
        raise UsageError("no node is named", hint="say for example `4 5` or `4-6`")
    nodes: set[int] = set()
    for word in words:
        nodes |= parse_nodes(word) if ("-" in word or "," in word) else {parse_node(word)}
    return cluster, sorted(nodes)


def show_phase(message: Message) -> None:
    """Tell the person at the terminal how far a node is."""
    if message.get("is") == "phase" and message.get("phase") == "ready":
        talk(f"node{message.get('node')} is up")
