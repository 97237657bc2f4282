"""Requests to a cluster's supervisor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError, TimedOut
from ssi.common.line import Line
from ssi.common.wire import Message
from ssi.host.cluster.spec import ClusterPlace

Hear = Callable[[Message], None]


@contextlib.asynccontextmanager
async def connect(place: ClusterPlace) -> AsyncIterator[Line]:
    """Connect to the supervisor of the cluster at `place`."""
    try:
        reader, writer = await asyncio.open_unix_connection(place.control, limit=wire.MAX_LINE)
    except OSError as error:
        raise SsiError(
            f"cluster {place.id} has no supervisor ({error.strerror})",
            hint="`ssi clean` removes what a crash left",
        ) from error
    line = Line(reader, writer)
    try:
        yield line
    finally:
        await line.close()


async def converse(line: Line, request: Mapping[str, object], hear: Hear) -> dict[str, Any]:
    """Send `request`, hand what comes to `hear` until the answer, and return that."""
    await line.send(request)
    while (message := await line.receive()) is not None:
        wire.raise_error(message)
        if message.get("is") == "done":
            return message
        hear(message)
    raise NodeLost("the supervisor ended during the request", hint="see `ssi ls`")


def ask(
    place: ClusterPlace,
    request: Mapping[str, object],
    hear: Hear = lambda _: None,
    *,
    within_s: float | None = None,
) -> Message:
    """Send one request and return its answer; `hear` gets the events before it.

    Raises what the supervisor answers, or TimedOut after `within_s` seconds.
    """

    async def talk() -> Message:
        async with asyncio.timeout(within_s), connect(place) as line:
            return await converse(line, request, hear)

    try:
        return asyncio.run(talk())
    except TimeoutError as error:
        raise TimedOut(
            f"cluster {place.id}: its supervisor did not answer in {within_s:.0f} s",
            hint="`ssi clean --force` ends it",
        ) from error
