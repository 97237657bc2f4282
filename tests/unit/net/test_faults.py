"""Faults: what people type, what goes over sockets, what people read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import ProtocolError, UsageError
from ssi.host.net.faults import (
    ALL,
    Faults,
    LinkFault,
    parse_delay,
    parse_drop,
    parse_faults,
    render_faults,
)

NODES = st.integers(1, 127)
PAIRS = st.one_of(st.just(ALL), st.tuples(NODES, NODES).filter(lambda pair: pair[0] != pair[1]))
LINKS = st.builds(
    LinkFault, st.integers(0, 1_000_000), st.integers(0, 60_000_000), st.integers(0, 60_000_000)
)


def faults_of(*lines: str) -> Faults:
    faults = Faults()
    for line in lines:
        faults = parse_faults(line.split(), faults)
    return faults


@given(st.dictionaries(PAIRS, LINKS), st.sets(NODES, min_size=2))
def test_json_round_trip(links: dict[tuple[int, int], LinkFault], nodes: set[int]) -> None:
    one = frozenset({min(nodes)})
    faults = Faults((one, frozenset(nodes) - one), links)
    assert Faults.from_json(faults.to_json()) == faults


@pytest.mark.parametrize(
    "body",
    [
        None, [], {}, {"groups": []}, {"groups": [], "links": [], "more": 1},
        {"groups": 1, "links": []}, {"groups": [1], "links": []}, {"groups": [[0]], "links": []},
        {"groups": [[128]], "links": []}, {"groups": [[True]], "links": []},
        {"groups": [[]], "links": []}, {"groups": [[1], [1]], "links": []},
        *({"groups": [], "links": [{"drop_ppm": 0, "delay_us": 0, "jitter_us": 0} | link]}
          for link in ({}, {"pair": [1]}, {"pair": [1, 1]}, {"pair": [0, 1]}, {"pair": [1, 128]},
                       {"pair": [1, 2], "drop_ppm": -1}, {"pair": [1, 2], "drop_ppm": 1_000_001},
                       {"pair": [1, 2], "drop_ppm": "1"}, {"pair": [1, 2], "delay_us": 1e9},
                       {"pair": [1, 2], "what": 1})),
    ],
)  # fmt: skip
def test_json_refuses(body: object) -> None:
    with pytest.raises(ProtocolError):
        Faults.from_json(body)


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([], ["no faults"]),
        (["partition 1,2 3"], ["partition 1-2 | 3"]),
        (["drop 1 2 10%"], ["1-2: drop 10%"]),
        (["drop 2 1 0.5"], ["1-2: drop 0.5%"]),
        (["delay all 50ms±10ms"], ["all: delay 50ms±10ms"]),
        (["delay 1 2 1.5s", "drop 1 2 1%"], ["1-2: drop 1%, delay 1500ms"]),
        (["delay all 5", "drop 1 2 1%"], ["all: delay 5ms", "1-2: drop 1%, delay 5ms"]),
        (["drop 1 2 1%", "delay all 5"], ["all: delay 5ms", "1-2: drop 1%, delay 5ms"]),
        (["delay all 5", "delay 1 2 0"], ["all: delay 5ms", "1-2: no fault"]),
        (["drop 1 2 10%", "drop 1 2 0"], ["no faults"]),
        (["partition 1 2", "drop all 10%", "heal"], ["no faults"]),
        (["partition 1 2", "partition 3"], ["partition 3"]),
    ],
)
def test_what_is_typed_is_what_is_shown(lines: list[str], shown: list[str]) -> None:
    assert render_faults(faults_of(*lines)) == shown


@pytest.mark.parametrize(
    "line",
    [
        "", "cut 1", "partition", "partition x", "partition 1,2 2", "partition 0", "heal 1",
        "drop", "drop 10%", "drop 1 10%", "drop 1 1 10%", "drop 1 2 101%", "drop 1 2 -1",
        "drop all x", "drop 1 128 1", "drop 1 2 3 4", "delay all", "delay all 61s", "delay all 5m",
        "delay all ±5", "delay all 5±", "delay 1 2 five",
    ],
)  # fmt: skip
def test_refuses(line: str) -> None:
    with pytest.raises(UsageError):
        parse_faults(line.split(), Faults())


def test_amounts() -> None:
    assert parse_drop("100%") == 1_000_000
    assert parse_drop("0.0001") == 1
    assert parse_delay("50us") == (50, 0)
    assert parse_delay("50+-10") == parse_delay("50ms+/-10ms") == (50_000, 10_000)
