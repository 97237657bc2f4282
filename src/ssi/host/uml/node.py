"""One virtual node: kernel, console, serial lines, network port and notifications as one thing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from ssi.common.line import Line
from ssi.common.wire import MAX_LINE
from ssi.host.uml.cmdline import NodeSpec, NodeWires, uml_argv
from ssi.host.uml.console import Console
from ssi.host.uml.notify import Kind, Notification, NotifySocket
from ssi.host.uml.process import UmlProcess


class VirtualNode:
    """A running virtual node. `panic` is what its kernel said when it died of itself."""

    def __init__(
        self, spec: NodeSpec, process: UmlProcess, console: Console, line: Line, fence: Line
    ) -> None:
        self.number = spec.node
        self.process = process
        self.console = console
        self.line = line
        self.fence = fence
        self.panic = ""

    def hear(self, notification: Notification) -> None:
        """Take what the kernel itself notified."""
        if notification.kind in {Kind.PANIC, Kind.HANG}:
            self.panic = notification.text


async def _open_line(stack: contextlib.ExitStack) -> tuple[Line, socket.socket]:
    """Return our end of a serial line, and the node's."""
    ours, theirs = socket.socketpair()
    stack.callback(theirs.close)
    reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
    stack.callback(writer.transport.abort)
    return Line(reader, writer), theirs


@contextlib.asynccontextmanager
async def run_node(
    spec: NodeSpec, *, network: socket.socket, console_log: Path, uml_log: Path
) -> AsyncIterator[VirtualNode]:
    """Run a virtual node. Leaving kills what is left of it and returns when that is gone.

    `network` is its end of the wire to the switch. It is closed here, so that the kernel holds
    the only copy and the switch sees the end of the node.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(network.close)
        console = Console(console_log)
        stack.callback(console.close)
        line, line_end = await _open_line(stack)
        fence, fence_end = await _open_line(stack)
        notify = NotifySocket(spec.uml_dir / f"{spec.umid}.notify")
        stack.callback(notify.close)
        wires = NodeWires(
            console=console.uml_ends, line=line_end.fileno(), fence=fence_end.fileno(),
            network=network.fileno(), notify=notify.path,
        )  # fmt: skip
        log = stack.enter_context(uml_log.open("ab"))
        process = await UmlProcess.start(
            uml_argv(spec, wires),
            pass_fds=(*wires.console, wires.line, wires.fence, wires.network),
            log=log,
        )
        console.close_uml_ends()
        for end in (line_end, fence_end, network):
            end.close()
        node = VirtualNode(spec, process, console, line, fence)
        notify.hear = node.hear
        try:
            yield node
        finally:
            await process.kill()
