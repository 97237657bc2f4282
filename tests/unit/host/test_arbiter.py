"""Who may mount and who dies in a split, whatever the network, the nodes and the reports do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from ssi.host.cluster.arbiter import Arbiter, Order, Verdict

nodes = st.integers(1, 6)
sides = st.integers(0, 2)


class Machine(RuleBasedStateMachine):
    """Nodes on the sides of a network that comes apart, their reports late, their orders in time.

    What a node does is modelled as it is: it mounts when it was admitted and its side has more than
    half of all votes, as dlm_controld starts no lockspace without quorum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arbiter = Arbiter()
        self.side: dict[int, int] = {}
        self.reported: dict[int, frozenset[int]] = {}
        self.admitted: set[int] = set()
        self.voting: set[int] = set()
        self.mounted: set[int] = set()

    def seen_by(self, node: int) -> frozenset[int]:
        return frozenset(other for other in self.side if self.side[other] == self.side[node])

    def obey(self) -> None:
        """Take the orders that are due, each of which must be right."""
        voters = frozenset(self.voting)
        given_ = self.arbiter.orders()
        for node, order in given_:
            if order is Order.VOTE:
                assert not voters, "a founder although somebody has a vote"
                assert node in self.reported, "a founder that has no ring yet"
                self.voting.add(node)
            elif node not in self.voting:
                seen = self.reported.get(node, frozenset())
                mutual = [v for v in seen & self.voting if node in self.reported.get(v, ())]
                assert mutual, "admitted by nobody"
            if order is Order.ADMIT:
                assert node not in self.admitted, "admitted twice"
                self.admitted.add(node)
        assert sum(order is Order.VOTE for _, order in given_) <= 1

    @rule(node=nodes, side=sides)
    def start(self, node: int, side: int) -> None:
        if node not in self.side:
            self.side[node] = side
            self.arbiter.started(node)

    @rule(node=nodes)
    def report(self, node: int) -> None:
        if node in self.side:
            self.reported[node] = self.seen_by(node)
            self.arbiter.saw(node, self.reported[node])
            self.obey()

    @rule(node=nodes, side=sides)
    def move(self, node: int, side: int) -> None:
        """The network changes; nobody has noticed yet."""
        if node in self.side:
            self.side[node] = side

    @rule(node=nodes)
    def mount(self, node: int) -> None:
        if node not in self.admitted - self.mounted:
            return
        votes = self.seen_by(node) & self.voting
        if 2 * len(votes) <= len(self.voting):
            return
        if self.mounted:
            assert self.seen_by(node) & self.mounted, "a second cluster on the same root"
        self.mounted.add(node)
        self.voting.add(node)
        self.arbiter.mounted(node)
        self.obey()

    @rule(node=nodes)
    def die(self, node: int) -> None:
        for known in (self.side, self.reported):
            known.pop(node, None)
        for having in (self.admitted, self.voting, self.mounted):
            having.discard(node)
        self.arbiter.died(node)
        self.obey()

    @precondition(lambda self: self.side)
    @rule()
    def heal(self) -> None:
        """The network is whole again and everybody has said so: then nobody waits."""
        for node in self.side:
            self.side[node] = 0
        for _, node in itertools.product(range(2), list(self.side)):
            self.report(node)
        assert self.admitted == set(self.side)
        assert self.voting

    @invariant()
    def counts_votes(self) -> None:
        assert self.arbiter.voters == self.voting
        assert self.arbiter.expected_votes == max(1, len(self.voting))

    @invariant()
    def keeps_orders_for_a_daemon_that_is_restarted(self) -> None:
        for node in self.side:
            standing = self.arbiter.standing_orders(node)
            assert (Order.ADMIT in standing) == (node in self.admitted)
            assert (Order.VOTE in standing) == (node in self.voting)


TestArbiter = Machine.TestCase


def running(*voters: int, joiners: Iterable[int] = ()) -> Arbiter:
    """Return the arbiter of a cluster in which `voters` have mounted and all see each other."""
    arbiter = Arbiter()
    everybody = frozenset({*voters, *joiners})
    for node in everybody:
        arbiter.started(node)
    for node in everybody:
        arbiter.saw(node, everybody)
    for node in voters:
        arbiter.mounted(node)
    return arbiter


def split(arbiter: Arbiter, *parts: Iterable[int]) -> None:
    for part in map(frozenset, parts):
        for node in part:
            arbiter.saw(node, part)


def admit_joiners(arbiter: Arbiter) -> None:
    assert all(order is Order.ADMIT for _, order in arbiter.orders())


def fight(arbiter: Arbiter, requests: Iterable[tuple[int, int]]) -> None:
    """Judge `requests` one after the other, each victim confirmed dead before the next."""
    for requester, victim in requests:
        match arbiter.judge(requester, victim):
            case Verdict.KILL:
                arbiter.died(victim)
            case Verdict.LOSE:
                arbiter.died(requester)
            case Verdict.WAIT:
                raise AssertionError("everybody has reported: there is nothing to wait for")


# -- joiners ---------------------------------------------------------------------------------------


def test_joiners_that_see_only_each_other_wait() -> None:
    arbiter = running(1)
    for node in (2, 3, 4):
        arbiter.started(node)
        arbiter.saw(node, frozenset({2, 3, 4}))
    assert arbiter.orders() == []


def test_a_joiner_with_an_old_view_waits() -> None:
    arbiter = running(1)
    arbiter.started(2)
    arbiter.saw(2, frozenset({1, 2}))
    assert arbiter.orders() == []
    arbiter.saw(1, frozenset({1, 2}))
    assert arbiter.orders() == [(2, Order.ADMIT)]
    assert arbiter.orders() == []


def test_the_lowest_of_several_founds_and_the_others_follow() -> None:
    arbiter = Arbiter()
    for node in (1, 2, 3):
        arbiter.started(node)
    arbiter.saw(2, frozenset({2}))
    assert arbiter.orders() == []
    arbiter.saw(1, frozenset({1}))
    assert arbiter.orders() == [(1, Order.VOTE), (1, Order.ADMIT)]
    for node in (1, 2, 3):
        arbiter.saw(node, frozenset({1, 2, 3}))
    assert arbiter.orders() == [(2, Order.ADMIT), (3, Order.ADMIT)]
    assert arbiter.voters == {1}


def test_a_founder_that_dies_before_it_mounts_has_a_successor() -> None:
    arbiter = Arbiter()
    for node in (1, 2, 3):
        arbiter.started(node)
        arbiter.saw(node, frozenset({1, 2, 3}))
    assert arbiter.orders()[:2] == [(1, Order.VOTE), (1, Order.ADMIT)]
    arbiter.died(1)
    # It is admitted already and may be about to mount; it lacks only the vote.
    assert arbiter.orders() == [(2, Order.VOTE)]
    assert arbiter.expected_votes == 1


def test_the_successor_is_one_that_was_admitted_already() -> None:
    arbiter = Arbiter()
    for node in (1, 3):
        arbiter.started(node)
        arbiter.saw(node, frozenset({1, 3}))
    assert (3, Order.ADMIT) in arbiter.orders()
    arbiter.started(2)
    arbiter.saw(2, frozenset({2}))
    arbiter.died(1)
    assert arbiter.orders() == [(3, Order.VOTE)]


# -- splits ----------------------------------------------------------------------------------------


@given(st.data())
def test_of_two_sides_exactly_one_lives(data: st.DataObject) -> None:
    everybody = data.draw(st.frozensets(st.integers(1, 9), min_size=2))
    ours = data.draw(st.frozensets(st.sampled_from(sorted(everybody)), min_size=1))
    theirs = everybody - ours
    if not theirs:
        return
    arbiter = running(*everybody)
    split(arbiter, ours, theirs)
    pairs = [pair for a, b in itertools.product(ours, theirs) for pair in ((a, b), (b, a))]
    fight(arbiter, data.draw(st.permutations(pairs)))
    winner = max((ours, theirs), key=lambda side: (len(side), -min(side)))
    assert arbiter.voters == winner


@given(st.data())
def test_of_three_sides_exactly_one_lives(data: st.DataObject) -> None:
    everybody = data.draw(st.permutations(range(1, 10)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 8), min_size=2, max_size=2)))
    parts = [everybody[: cuts[0]], everybody[cuts[0] : cuts[1]], everybody[cuts[1] :]]
    arbiter = running(*everybody)
    split(arbiter, *parts)
    pairs = [
        (a, b) for ours, theirs in itertools.permutations(parts, 2) for a in ours for b in theirs
    ]
    fight(arbiter, data.draw(st.permutations(pairs)))
    assert arbiter.voters
    assert any(arbiter.voters <= set(part) for part in parts)


def test_the_smaller_side_waits_until_the_larger_has_said_that_it_misses_it() -> None:
    arbiter = running(1, 2, 3)
    arbiter.saw(1, frozenset({1}))
    assert arbiter.judge(1, 2) is Verdict.WAIT
    arbiter.saw(2, frozenset({2, 3}))
    assert arbiter.judge(1, 2) is Verdict.LOSE
    assert arbiter.judge(2, 1) is Verdict.KILL


def test_a_majority_that_says_nothing_hangs_and_is_killed() -> None:
    arbiter = running(1, 2, 3)
    arbiter.saw(3, frozenset({3}))
    assert arbiter.judge(3, 1) is Verdict.WAIT
    assert arbiter.judge(3, 1, final=True) is Verdict.KILL
    arbiter.died(1)
    assert arbiter.judge(3, 2, final=True) is Verdict.KILL


@pytest.mark.parametrize("dead", [2, 9])
def test_the_dead_are_confirmed_at_once(dead: int) -> None:
    arbiter = running(1, 2)
    arbiter.died(dead)
    assert arbiter.judge(1, dead) is Verdict.KILL


def test_a_request_that_overtakes_its_view_waits() -> None:
    arbiter = running(1, 2, 3)
    # 3 is alone, and dlm_controld was faster than the daemon in saying so.
    assert arbiter.judge(3, 1) is Verdict.WAIT
    split(arbiter, {1, 2}, {3})
    assert arbiter.judge(3, 1) is Verdict.LOSE
    assert arbiter.judge(1, 3) is Verdict.KILL


def test_a_node_that_left_only_the_locks_is_killed_in_the_end() -> None:
    arbiter = running(1, 2)
    assert arbiter.judge(1, 2) is Verdict.WAIT
    assert arbiter.judge(1, 2, final=True) is Verdict.KILL


def test_a_request_about_a_former_life_spares_the_new_one() -> None:
    arbiter = running(1, 2)
    arbiter.died(2)
    arbiter.started(2)
    arbiter.saw(1, frozenset({1}))
    assert arbiter.judge(1, 2) is Verdict.DEAD


def test_a_dead_requester_gets_nothing() -> None:
    arbiter = running(1, 2)
    arbiter.died(1)
    assert arbiter.judge(1, 2) is Verdict.LOSE


def test_a_lone_survivor_may_kill_those_without_a_vote() -> None:
    arbiter = running(1, joiners=[2, 3])
    admit_joiners(arbiter)
    arbiter.saw(1, frozenset({1}))
    assert arbiter.judge(1, 2) is Verdict.KILL


def test_who_has_no_vote_may_be_killed_by_the_smaller_side_too() -> None:
    arbiter = running(1, 2, 3, joiners=[4])
    admit_joiners(arbiter)
    arbiter.saw(3, frozenset({3}))
    assert arbiter.judge(3, 4) is Verdict.KILL
