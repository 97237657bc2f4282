"""Replicated state under joins, losses, restarts of daemons and messages in any order."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ssi.common.errors import ProtocolError
from ssi.common.wire import Message, decode, encode, get_int, get_ints
from ssi.node.state.replica import Machine, Replica, Snapshot

Record = tuple[int, ...]
MOST = 5


def _apply(state: Record, _: int, operation: Message) -> Record:
    return (*state, get_int(operation, "number", 0, 10**6))


MACHINE: Machine[Record] = Machine(
    begin=(),
    apply=_apply,
    dump=lambda state: {"numbers": list(state)},
    load=lambda message: tuple(get_ints(message, "numbers", 0, 10**6)),
)


@dataclasses.dataclass
class Node:
    """A node that runs; its daemon may be away, what that saved is not."""

    replica: Replica[Record] | None = None
    voter: bool = False
    saved: Snapshot[Record] | None = None
    knew: Snapshot[Record] | None = None
    runs: int = 0
    run: int = 0
    operations: int = 0
    sent: list[bytes] = dataclasses.field(default_factory=list)
    outstanding: dict[int, bytes] = dataclasses.field(default_factory=dict)


class Cluster(RuleBasedStateMachine):
    """A ring that delivers everything to all in one order, as corosync does."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[int, Node] = {}
        self.acknowledged: list[int] = []
        self.numbers = 0
        self.runs = 0

    @property
    def group(self) -> dict[int, Replica[Record]]:
        return {n: node.replica for n, node in self.nodes.items() if node.replica}

    def send(self, node: int, messages: list[Message]) -> None:
        self.nodes[node].sent += map(encode, messages)

    def change(
        self, joined: frozenset[int] = frozenset(), left: frozenset[int] = frozenset(),
        *, lost: bool = False,
    ) -> None:  # fmt: skip
        members = frozenset(self.group)
        for n, replica in self.group.items():
            firm = self.nodes[n].voter or not lost
            self.send(n, replica.change(members, left, joined, firm=firm))
            self.keep(n)
        self.learn()

    def learn(self, founder: int = 0) -> None:
        for n, replica in self.group.items():
            self.send(n, replica.learn(
                voter=self.nodes[n].voter, founder=founder == n, ring=frozenset(self.nodes)
            ))  # fmt: skip

    def keep(self, n: int) -> None:
        """What follows each call: save, and repeat what a loss of the state has swallowed."""
        node = self.nodes[n]
        assert node.replica
        known, knew = node.replica.known, node.knew
        node.knew = known
        if known is None:
            return
        node.saved = known
        if knew is None:
            last = known.marks.get(n, (-1, 0))
            again = [m for k, m in sorted(node.outstanding.items()) if (node.run, k) > last]
            node.sent += again

    def start_daemon(self, n: int) -> None:
        node = self.nodes[n]
        node.runs += 1
        self.runs += 1
        node.run = self.runs
        node.operations = 0
        node.knew = None
        node.sent, node.outstanding = [], {}
        node.replica = Replica(n, MACHINE, node.saved)
        self.change(joined=frozenset({n}))

    @precondition(lambda self: len(self.nodes) < MOST)
    @rule(data=st.data())
    def boot(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(sorted(set(range(1, MOST + 1)) - set(self.nodes))))
        self.nodes[n] = Node()
        self.learn()
        self.start_daemon(n)

    @precondition(lambda self: any(not node.voter for node in self.nodes.values()))
    @rule(data=st.data())
    def vote(self, data: st.DataObject) -> None:
        """The host lets a node mount; the first of all only if its daemon was never away."""
        first = not any(node.voter for node in self.nodes.values())
        others = sorted(n for n, node in self.nodes.items() if not node.voter)
        if not first:
            # A node takes its vote when it knows: it may soon be all that is left.
            others = [n for n in others if (r := self.nodes[n].replica) and r.known]
        else:
            others = [n for n in others if self.nodes[n].runs == 1 and self.nodes[n].replica]
        if others:
            n = data.draw(st.sampled_from(others))
            self.nodes[n].voter = True
            self.learn(founder=n if first else 0)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        lost = data.draw(st.sets(st.sampled_from(sorted(self.nodes)), min_size=1))
        voted = any(node.voter for node in self.nodes.values())
        for n in lost:
            del self.nodes[n]
        if voted and not any(node.voter for node in self.nodes.values()):
            self.nodes.clear()  # it is lost with those who had it; the rest is not tried here
            self.acknowledged.clear()
        self.change(left=frozenset(lost), lost=True)

    @precondition(lambda self: self.group)
    @rule(data=st.data())
    def kill_daemons(self, data: st.DataObject) -> None:
        some = st.sets(st.sampled_from(sorted(self.group)), min_size=1)
        self.kill(data.draw(st.just(set(self.group)) | some))

    def kill(self, killed: set[int]) -> None:
        for n in killed:
            self.nodes[n].replica = None
            self.nodes[n].sent = []
        self.change(left=frozenset(killed))

    @precondition(lambda self: len(self.group) < len(self.nodes))
    @rule(data=st.data())
    def restart_daemon(self, data: st.DataObject) -> None:
        self.start_daemon(data.draw(st.sampled_from(sorted(set(self.nodes) - set(self.group)))))

    @precondition(lambda self: any(r.known for r in self.group.values()))
    @rule(data=st.data())
    def operate(self, data: st.DataObject) -> None:
        self.operate_on(
            data.draw(st.sampled_from(sorted(n for n, r in self.group.items() if r.known)))
        )

    def operate_on(self, n: int) -> None:
        self.numbers += 1
        node = self.nodes[n]
        node.operations += 1
        message = encode({
            "is": "do", "run": node.run, "number": node.operations,
            "operation": {"number": self.numbers},
        })  # fmt: skip
        node.outstanding[node.operations] = message
        node.sent.append(message)

    @precondition(lambda self: any(node.sent for node in self.nodes.values()))
    @rule(data=st.data(), count=st.integers(1, 25))
    def deliver(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if senders := sorted(n for n, node in self.nodes.items() if node.sent):
                self.deliver_from(data.draw(st.sampled_from(senders)))

    def deliver_from(self, sender: int) -> None:
        message = decode(self.nodes[sender].sent.pop(0))
        for n, replica in self.group.items():
            self.send(n, replica.deliver(sender, message))
            self.keep(n)
        self.acknowledge()

    def deliver_all(self) -> None:
        while senders := [n for n, node in self.nodes.items() if node.sent]:
            self.deliver_from(senders[0])

    def acknowledge(self) -> None:
        """Whose operations all living nodes have seen, may tell its client."""
        for n, replica in self.group.items():
            node = self.nodes[n]
            if replica.known is None or any(
                replica.seen.get(other, -1) < replica.known.index for other in self.nodes
            ):
                continue
            run, done = replica.known.marks.get(n, (-1, 0))
            for number in [k for k in node.outstanding if run == node.run and k <= done]:
                operation = decode(node.outstanding.pop(number))["operation"]
                self.acknowledged.append(operation["number"])

    @precondition(lambda self: any(node.voter for node in self.nodes.values()))
    @rule()
    def settle(self) -> None:
        """When all daemons run and nothing happens any more, all know, and all is acknowledged."""
        for n in sorted(set(self.nodes) - set(self.group)):
            self.start_daemon(n)
        for _ in range(3):
            self.deliver_all()
            for n, replica in self.group.items():
                self.send(n, replica.ask_again())
        assert all(replica.known for replica in self.group.values())
        assert not any(node.outstanding for node in self.nodes.values())

    @invariant()
    def all_who_know_know_the_same(self) -> None:
        known = [r.known for r in self.group.values() if r.known]
        assert all(snapshot == known[0] for snapshot in known)

    @invariant()
    def nothing_is_done_twice_and_nothing_is_lost(self) -> None:
        for replica in self.group.values():
            if replica.known:
                done = replica.known.state
                assert len(set(done)) == len(done)
                assert set(self.acknowledged) <= set(done)
                # Not even what was not acknowledged yet, while a node lives that has saved it.
                for node in self.nodes.values():
                    assert node.saved is None or set(node.saved.state) <= set(done)


TestReplica = Cluster.TestCase
TestReplica.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("last", [1, 2])
def test_the_one_that_came_furthest_begins(last: int) -> None:
    cluster = Cluster()
    for n in (1, 2):
        cluster.nodes[n] = Node(voter=n == 1)
        cluster.start_daemon(n)
        cluster.learn(founder=1)
        cluster.deliver_all()
    cluster.nodes[2].voter = True
    cluster.learn()
    first = 3 - last
    cluster.kill({first})
    cluster.operate_on(last)
    cluster.deliver_all()
    cluster.kill({last})
    cluster.start_daemon(first)
    cluster.deliver_all()
    # The other is in the ring, and may know more.
    assert not cluster.group[first].known
    cluster.start_daemon(last)
    cluster.deliver_all()
    assert [r.known and r.known.state for r in cluster.group.values()] == [(1,), (1,)]


@pytest.mark.parametrize(
    "message",
    [
        {}, {"is": "nope"}, {"is": "ask"}, {"is": "ask", "serial": -1}, {"is": "state"},
        {"is": "state", "for": 0, "serial": 1}, {"is": "begin"}, {"is": "seen", "index": "1"},
        {"is": "ignorant", "to": 1, "serial": 1, "voter": 1, "index": 1},
    ],
)  # fmt: skip
def test_refuses(message: Message) -> None:
    replica = Replica(1, MACHINE)
    with pytest.raises(ProtocolError):
        replica.deliver(2, message)
