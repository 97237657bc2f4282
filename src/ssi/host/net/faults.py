"""Faults of the virtual network: who is cut off from whom, what is dropped, what is late."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ssi.common.errors import ProtocolError, UsageError
from ssi.common.nodes import MAX_NODE, fold_nodes, parse_node, parse_nodes

LONGEST_DELAY_US = 60_000_000
PPM = 1_000_000

Pair = tuple[int, int]
ALL: Pair = (0, 0)
"""The pair that stands for every pair without an entry of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class LinkFault:
    """What befalls frames on the way from one node to another."""

    drop_ppm: int = 0
    delay_us: int = 0
    jitter_us: int = 0

    def __post_init__(self) -> None:
        for value, most in (
            (self.drop_ppm, PPM),
            (self.delay_us, LONGEST_DELAY_US),
            (self.jitter_us, LONGEST_DELAY_US),
        ):
            if not 0 <= value <= most:
                raise UsageError(f"{value} is not between 0 and {most}")


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """All faults of a network; without arguments: none.

    Frames pass only inside one of `groups`; the nodes in none of them form one more.
    """

    groups: tuple[frozenset[int], ...] = ()
    links: Mapping[Pair, LinkFault] = dataclasses.field(default_factory=dict)

    def with_groups(self, groups: Sequence[frozenset[int]]) -> Self:
        """Return these faults with other partitions."""
        return dataclasses.replace(self, groups=tuple(groups))

    def with_drop(self, pair: Pair, drop_ppm: int) -> Self:
        """Return these faults with another loss on `pair`, both ways; ALL: on every pair."""
        return self._changed(pair, {"drop_ppm": drop_ppm})

    def with_delay(self, pair: Pair, delay_us: int, jitter_us: int) -> Self:
        """Return these faults with another delay on `pair`, both ways; ALL: on every pair."""
        return self._changed(pair, {"delay_us": delay_us, "jitter_us": jitter_us})

    def link(self, pair: Pair) -> LinkFault:
        """Return what befalls frames from the first to the second node of `pair`."""
        return self.links.get(pair) or self.links.get(ALL) or LinkFault()

    def _changed(self, pair: Pair, change: dict[str, int]) -> Self:
        pairs = {*self.links, ALL} if pair == ALL else {pair, pair[::-1]}
        links = {each: dataclasses.replace(self.link(each), **change) for each in pairs}
        merged = {**self.links, **links}
        default = merged.get(ALL, LinkFault())
        # An entry that says what holds for all anyway is only something more to read.
        kept = {p: f for p, f in merged.items() if f != (LinkFault() if p == ALL else default)}
        return dataclasses.replace(self, links=kept)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "groups": [sorted(group) for group in self.groups],
            "links": [
                {"pair": list(pair), **dataclasses.asdict(fault)}
                for pair, fault in sorted(self.links.items())
            ],
        }

    @classmethod
    def from_json(cls, body: object) -> Self:
        """Read what came from a socket or a file; anything unexpected is a ProtocolError."""
        table = _table(body, {"groups", "links"})
        groups = [frozenset(_node(n) for n in _list(group)) for group in _list(table["groups"])]
        entries = [_link(entry) for entry in _list(table["links"])]
        try:
            return cls(check_groups(groups), dict(entries))
        except UsageError as error:
            raise ProtocolError(str(error)) from error


# ---- what a person types ----


def parse_faults(words: Sequence[str], faults: Faults) -> Faults:
    """Return `faults` as `words` change them: ``drop 1 2 10%``, ``heal`` …; or raise UsageError."""
    match list(words):
        case ["partition", *groups] if groups:
            return faults.with_groups(parse_groups(groups))
        case ["drop", *where, amount]:
            return faults.with_drop(parse_pair(where), parse_drop(amount))
        case ["delay", *where, time]:
            return faults.with_delay(parse_pair(where), *parse_delay(time))
        case ["heal"]:
            return Faults()
    raise UsageError(
        f"{' '.join(words)!r} is no fault of a network",
        hint="partition 1,2 3 · drop 1 2 10% · delay all 50ms±10ms · heal · show",
    )


def parse_groups(words: Sequence[str]) -> tuple[frozenset[int], ...]:
    """Return the groups that ``1,2 3-5`` names."""
    return check_groups([parse_nodes(word) for word in words])


def check_groups(groups: Sequence[frozenset[int]]) -> tuple[frozenset[int], ...]:
    """Return `groups`, or raise UsageError when one is empty or a node is in two of them."""
    seen: set[int] = set()
    for group in groups:
        if not group:
            raise UsageError("a group without nodes")
        if seen & group:
            raise UsageError(f"node {fold_nodes(seen & group)} is in two groups")
        seen |= group
    return tuple(groups)


def parse_pair(words: Sequence[str]) -> Pair:
    """Return the pair that ``1 2`` or ``all`` names."""
    match list(words):
        case ["all"]:
            return ALL
        case [first, second]:
            pair = parse_node(first), parse_node(second)
            if pair[0] == pair[1]:
                raise UsageError(
                    f"{first} and {second} are one node", hint="name two nodes, or all"
                )
            return pair
    raise UsageError(f"{' '.join(words)!r} is not a pair of nodes", hint="name two nodes, or all")


def parse_drop(text: str) -> int:
    """Return the parts in a million that ``10%`` or ``0.5`` (percent) says."""
    matched = re.fullmatch(r"(\d{1,3}(?:\.\d{1,4})?)%?", text, re.ASCII)
    if not matched or float(matched[1]) > 100:
        raise UsageError(f"{text!r} is not a percentage", hint="write 0 to 100, such as 10%")
    return round(float(matched[1]) * PPM / 100)


def parse_delay(text: str) -> tuple[int, int]:
    """Return delay and jitter in microseconds: ``50``, ``1.5s``, ``50ms±10ms``, ``50+-10``."""
    delay, _, jitter = text.replace("+-", "±").replace("+/-", "±").partition("±")
    if "±" in text or "+" in text:
        return _microseconds(delay, text), _microseconds(jitter, text)
    return _microseconds(delay, text), 0


def _microseconds(text: str, whole: str) -> int:
    matched = re.fullmatch(r"(\d{1,8}(?:\.\d{1,3})?)(us|ms|s|)", text, re.ASCII)
    if matched:
        scale = {"us": 1, "ms": 1000, "": 1000, "s": 1_000_000}[matched[2]]
        time_us = round(float(matched[1]) * scale)
        if time_us <= LONGEST_DELAY_US:
            return time_us
    raise UsageError(
        f"{whole!r} is not a delay", hint="such as 50ms, 1.5s or 50ms±10ms; 60 s at most"
    )


# ---- what people read ----


def render_faults(faults: Faults) -> list[str]:
    """Return lines that say what is wrong with the network on purpose."""
    lines = [f"partition {' | '.join(fold_nodes(group) for group in faults.groups)}"]
    if not faults.groups:
        lines = []
    for pair, fault in sorted(faults.links.items()):
        # Faults are set both ways: one line a pair unless the ways differ.
        if pair[0] > pair[1] and faults.links.get(pair[::-1]) == fault:
            continue
        lines.append(f"{_name(pair, faults)}: {_render_link(fault)}")
    return lines or ["no faults"]


def _name(pair: Pair, faults: Faults) -> str:
    if pair == ALL:
        return "all"
    arrow = "-" if faults.links.get(pair[::-1]) == faults.links[pair] else "→"
    return f"{pair[0]}{arrow}{pair[1]}"


def _render_link(fault: LinkFault) -> str:
    parts = []
    if fault.drop_ppm:
        parts.append(f"drop {fault.drop_ppm * 100 / PPM:g}%")
    if fault.delay_us or fault.jitter_us:
        jitter = f"±{fault.jitter_us / 1000:g}ms" if fault.jitter_us else ""
        parts.append(f"delay {fault.delay_us / 1000:g}ms{jitter}")
    return ", ".join(parts) or "no fault"


# ---- what comes from elsewhere ----


def _table(body: object, keys: set[str]) -> dict[str, Any]:
    if not isinstance(body, dict) or body.keys() != keys:
        raise ProtocolError(f"faults: not an object with {', '.join(sorted(keys))}")
    return body


def _list(body: object) -> list[Any]:
    if not isinstance(body, list):
        raise ProtocolError(f"faults: {body!r} is not a list")
    return body


def _integer(body: object) -> int:
    if not isinstance(body, int) or isinstance(body, bool):
        raise ProtocolError(f"faults: {body!r} is not a whole number")
    return body


def _node(body: object, *, least: int = 1) -> int:
    node = _integer(body)
    if not least <= node <= MAX_NODE:
        raise ProtocolError(f"faults: {node} is not a node")
    return node


def _link(body: object) -> tuple[Pair, LinkFault]:
    table = dict(_table(body, {"pair", "drop_ppm", "delay_us", "jitter_us"}))
    nodes = [_node(node, least=0) for node in _list(table.pop("pair"))]
    if len(nodes) != 2 or (nodes[0] == nodes[1]) != (nodes == [0, 0]) or nodes.count(0) == 1:
        raise ProtocolError(f"faults: {nodes} is not a pair of nodes")
    values = {key: _integer(value) for key, value in table.items()}
    try:
        return (nodes[0], nodes[1]), LinkFault(**values)
    except UsageError as error:
        raise ProtocolError(str(error)) from error
