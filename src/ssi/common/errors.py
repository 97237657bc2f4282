"""Errors a person is expected to meet: what happened, on which object, and the remedy.

Libraries raise these; only `ssi.cli.main` prints one and exits with its status. Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class SsiError(Exception):
    """An expected failure. `hint` is the remedy, best a command to type.

    `code` is its name on the wire, `exit_status` the status of a command that ends with it.
    """

    code = "failed"
    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SsiError):
    """The command's words are off."""

    code = "usage"
    exit_status = 2


class NodeLost(SsiError):
    """A node died, or could not be reached, while it was needed (EX_UNAVAILABLE)."""

    code = "node-lost"
    exit_status = 69


class TimedOut(SsiError):
    """A deadline passed; 124 as timeout(1) has it."""

    code = "timeout"
    exit_status = 124


class BuildError(SsiError):
    """A kernel, ramdisk or root could not be made."""

    code = "build"


class ProtocolError(SsiError):
    """What arrived on a socket is not a message of the protocol."""

    code = "protocol"


WIRE_ERRORS: dict[str, type[SsiError]] = {
    kind.code: kind
    for kind in (SsiError, UsageError, NodeLost, TimedOut, BuildError, ProtocolError)
}
