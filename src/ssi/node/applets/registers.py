"""clreg: the cluster's registers, small values that all nodes know alike.

What it has changed is known to every living node when it returns, and is while one of them lives.
"""

from __future__ import annotations

import functools
import json
import re

from ssi.common.errors import ProtocolError, SsiError, UsageError
from ssi.node.applets.arguments import Parser, parse
from ssi.node.applets.cluster import Denied
from ssi.node.cluster import Cluster
from ssi.node.local import LocalServer, Output, Request
from ssi.node.state.registers import (
    MAX_REGISTERS,
    MAX_VALUE,
    Registers,
    check_name,
    parse_number,
)

WITHIN_S = 10.0


class NoRegister(SsiError):
    """There is none of that name."""

    code = "no-register"
    exit_status = 1


class RegisterApplet:
    """The command."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by it."""
        server.serve("clreg", self.run)

    async def run(self, request: Request, output: Output) -> int:
        """List, show or change registers."""
        options = await parse(_parser(), request, output)
        if options is None:
            return 0
        words: list[str] = options.words
        match words:
            case [] | ["list"]:
                await output.write(self._list(as_json=options.json))
            case ["get", name]:
                await output.write(self._get(_check(name)) + "\n")
            case ["set" | "add" | "delete", *_] if request.uid != 0:
                raise Denied("only root may change registers")
            case ["set", name, value]:
                await self._set(_check(name), value)
            case ["add", name, amount]:
                await output.write(await self._add(_check(name), _parse_amount(amount)) + "\n")
            case ["delete", name]:
                await self._commit("delete", name=_check(name))
            case _:
                raise UsageError(f"{' '.join(words)!r:.80} is not understood", hint="clreg --help")
        return 0

    def _list(self, *, as_json: bool) -> str:
        values = self._registers().values
        if as_json:
            return json.dumps(dict(values)) + "\n"
        return "".join(f"{name}={values[name]}\n" for name in sorted(values))

    def _get(self, name: str) -> str:
        values = self._registers().values
        if name not in values:
            raise NoRegister(f"there is no register {name!r}")
        return values[name]

    def _registers(self) -> Registers:
        state = self._cluster.known
        return state.registers if state else Registers()

    async def _set(self, name: str, value: str) -> None:
        if len(value) > MAX_VALUE:
            raise UsageError(f"a value of {len(value)} characters; {MAX_VALUE} are the most")
        if (await self._commit("set", name=name, value=value)).values.get(name) != value:
            raise SsiError(f"there are {MAX_REGISTERS} registers already", hint="clreg delete")

    async def _add(self, name: str, amount: int) -> str:
        if parse_number(self._registers().values.get(name, "0")) is None:
            raise UsageError(f"register {name!r} is no number")
        values = (await self._commit("add", name=name, amount=amount)).values
        if name not in values:
            raise SsiError(f"there are {MAX_REGISTERS} registers already", hint="clreg delete")
        return values[name]

    async def _commit(self, operation: str, **fields: object) -> Registers:
        state = await self._cluster.commit("registers", operation, within_s=WITHIN_S, **fields)
        return state.registers


def _check(name: str) -> str:
    try:
        return check_name(name)
    except ProtocolError as error:
        raise UsageError(str(error)) from error


def _parse_amount(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise UsageError(f"{text!r} is no whole number")
    return int(text)


# Made once: that takes a node longer than all the rest of an answer.
@functools.cache
def _parser() -> Parser:
    parser = Parser(
        "clreg",
        "Values that all nodes know alike: list, get NAME, set NAME VALUE, add NAME AMOUNT (prints "
        "what it is then), delete NAME. Root may change them.",
    )
    parser.add_argument("--json", action="store_true", help="with list: print JSON")
    parser.add_argument("words", metavar="VERB", nargs="*", help="what to do (default: list)")
    return parser
