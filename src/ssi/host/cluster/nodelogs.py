"""The nodes' logs on the host: what each says is kept, also when it has died."""

from __future__ import annotations

import contextlib
import re

from ssi.common.errors import ProtocolError
from ssi.common.logline import LogLine, now_us, split_text
from ssi.common.rotating import append
from ssi.common.wire import Message, get_int, get_text
from ssi.host.cluster.member import Member
from ssi.host.cluster.spec import ClusterPlace

LIMIT = 8 << 20
"""Bytes of a node's log; twice that are kept."""


class NodeLogs:
    """Appends what nodes say to their logs."""

    def __init__(self, place: ClusterPlace) -> None:
        self._place = place

    def hear(self, member: Member, message: Message) -> None:
        """Keep one line of a node."""
        # Its clock is ours, and it cannot know the future.
        time_us = min(get_int(message, "time", 0, 2**60), now_us())
        view = get_int(message, "view", 0, 10**15 - 1)
        source = get_text(message, "source")
        if not re.fullmatch("[a-z_]{1,16}", source):
            raise ProtocolError(f"field 'source' is {source!r:.60}")
        text = "".join(
            f"{LogLine(time_us, member.number, view, source, part)}\n"
            for part in split_text(get_text(message, "text"))
        )
        # A full disk or a folder that somebody removed: the cluster goes on.
        with contextlib.suppress(OSError):
            append(self._place.node_log(member.number), text, LIMIT)
