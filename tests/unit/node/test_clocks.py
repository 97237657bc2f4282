"""By how much a clock is corrected."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ssi.node.clocks import CALM_S, correction, take_sample

delays = st.floats(1e-5, 1.0)


@given(st.floats(-100, 100), st.lists(st.tuples(delays, delays), min_size=1, max_size=6))
def test_never_more_wrong_than_before(ahead: float, ways: list[tuple[float, float]]) -> None:
    samples = [
        take_sample(1000.0, 1000.0 + there + ahead, 1000.0 + there + back) for there, back in ways
    ]
    by = correction(samples)
    doubt = min(there + back for there, back in ways) / 2
    assert abs(ahead - by) <= max(2 * doubt, CALM_S) + 1e-9


def test_the_quickest_answer_counts() -> None:
    quick = take_sample(10.0, 12.001, 10.002)
    slow = take_sample(10.0, 19.0, 10.9)
    assert abs(correction([slow, quick]) - 2.0) < 0.001


def test_what_is_in_doubt_is_left_alone() -> None:
    assert correction([take_sample(10.0, 10.3, 10.4)]) == 0
    assert correction([take_sample(10.0, 10.0005, 10.0)]) == 0
