"""The words of a command, parsed for a caller elsewhere: argparse that neither prints nor exits."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from ssi.common.errors import UsageError
from ssi.node.local import Output, Request


class _Help(Exception):
    """Help was asked for, and is this."""


def _formatter(prog: str) -> argparse.HelpFormatter:
    # Not the width of whatever terminal the daemon was started from.
    return argparse.HelpFormatter(prog, width=80)


class Parser(argparse.ArgumentParser):
    """Parses an applet's words; raises UsageError for wrong ones."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(
            prog=name, description=description, formatter_class=_formatter, allow_abbrev=False,
            conflict_handler="resolve",  # shutdown -h is older than help
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Raise instead of exit."""
        raise UsageError(message, hint=f"{self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:  # noqa: ARG002
        """Raise instead of exit; help comes here after it was printed."""
        raise _Help(self.format_help())

    def _print_message(self, message: str, file: object = None) -> None:
        """Print nothing: what would be is in what `exit` raises."""


async def parse(parser: Parser, request: Request, output: Output) -> Any | None:  # noqa: ANN401
    """Return the parsed words of `request`; None if they ask for help, which is then written."""
    try:
        return parser.parse_args(list(request.argv[1:]))
    except _Help as text:
        await output.write(str(text))
        return None
