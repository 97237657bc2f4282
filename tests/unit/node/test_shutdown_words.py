"""What `shutdown` understands, and what it tells everybody when."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import UsageError
from ssi.node.applets.init import parse_time
from ssi.node.init.descent import describe, next_warning
from ssi.node.state.init import Phase, Shutdown

NOON = dt.datetime(2026, 1, 2, 12, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("now", 0), ("+5", 5), ("5", 5), ("12:30", 30), ("12:00", 24 * 60), ("00:00", 12 * 60)],
)
def test_times(text: str, minutes: float) -> None:
    assert parse_time(text, NOON) == NOON.timestamp() + 60 * minutes


@pytest.mark.parametrize("text", ["", "soon", "+", "-5", "24:00", "12:60"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError):
        parse_time(text, NOON)


@given(st.floats(1, 1e5), st.floats(1, 1e5))
def test_warnings_come_until_the_time_itself(planned: float, now: float) -> None:
    if now >= planned:
        return
    warned = []
    while now < planned:
        now = next_warning(planned, now)
        warned.append(planned - now)
    assert warned[-1] == 0
    assert warned == sorted(warned, reverse=True)


@pytest.mark.parametrize(
    ("left", "when"), [(600, "in 10 minutes"), (60, "in 60 seconds"), (0, "NOW"), (-9, "NOW")]
)
def test_what_everybody_is_told(left: float, when: str) -> None:
    shutdown = Shutdown("reboot", 1000.0, "me", "Back soon.", Phase.PLANNED)
    assert describe(shutdown, 1000.0 - left) == (
        f"The cluster is going down for reboot {when}!\nBack soon."
    )
