"""Who may mount, whose vote counts, and who dies in a split: the host decides, and this is how.

corosync suspects, a kill confirms. The host runs every node, so it alone knows who lives, and no
two nodes can hold different opinions about it. The rules, with their reasons, are in
docs/decisions/quorum.md. Pure: it is told what happens and says what to do.
"""

from __future__ import annotations

import dataclasses
import enum


class Order(enum.Enum):
    """What a node is told."""

    ADMIT = "admit"  # start the locks and mount the root
    VOTE = "vote"  # take a vote now, before the root is mounted


class Verdict(enum.Enum):
    """The answer to a request to fence."""

    KILL = "kill"  # the victim
    WAIT = "wait"  # the other side of a split may say more soon
    DEAD = "dead"  # the victim was, and what has its number now is new
    LOSE = "lose"  # the requester is on the losing side of a split


@dataclasses.dataclass(slots=True)
class _Node:
    view: frozenset[int] = frozenset()
    admitted: bool = False
    votes: bool = False


class Arbiter:
    """What is known of the living nodes of one cluster."""

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}

    def started(self, node: int) -> None:
        """A node's kernel was started; nothing is known of it yet."""
        self._nodes[node] = _Node()

    def died(self, node: int) -> None:
        """A node is dead beyond doubt, or has left in order."""
        self._nodes.pop(node, None)

    def saw(self, node: int, members: frozenset[int]) -> None:
        """`node` says that its ring has these members."""
        if node in self._nodes:
            self._nodes[node].view = members

    def mounted(self, node: int) -> None:
        """`node` has mounted the root and taken its vote."""
        if node in self._nodes:
            self._nodes[node].admitted = self._nodes[node].votes = True

    def not_noticed(self, dead: int) -> frozenset[int]:
        """Return the voters who still see the dead node in their ring.

        Until there are none it must not come back: its next life would be taken for the former
        one, which they are about to have fenced.
        """
        return frozenset(n for n in self.voters - {dead} if dead in self._nodes[n].view)

    def standing_orders(self, node: int) -> list[Order]:
        """Return what `node` was told so far, for a daemon that was restarted."""
        known = self._nodes.get(node, _Node())
        return [Order.VOTE] * known.votes + [Order.ADMIT] * known.admitted

    @property
    def voters(self) -> frozenset[int]:
        """The living nodes that have a vote."""
        return frozenset(n for n, known in self._nodes.items() if known.votes)

    @property
    def expected_votes(self) -> int:
        """The votes that the living nodes have together; 1 at least, as corosync wants it."""
        return max(1, len(self.voters))

    def orders(self) -> list[tuple[int, Order]]:
        """Return what has become due, each once.

        At any time one of the living is, or has been let, the first to mount (the founder). Every
        other is admitted only while its ring contains one who has a vote; so joiners that see only
        each other wait, however many they are.
        """
        due: list[tuple[int, Order]] = []
        if not self.voters:
            due += self._found()
        for node, known in sorted(self._nodes.items()):
            if not known.admitted and known.view & self.voters and self._is_seen(node):
                known.admitted = True
                due.append((node, Order.ADMIT))
        return due

    def _is_seen(self, node: int) -> bool:
        # A view is old when the ring has broken since: the voter must see the joiner, too.
        return any(node in self._nodes[voter].view for voter in self.voters)

    def _found(self) -> list[tuple[int, Order]]:
        # One that was admitted before its founder died may be about to mount: it comes first. Then
        # the lowest: the founder runs what the cluster has only one of, and people expect node 1.
        candidates = sorted((not known.admitted, node) for node, known in self._nodes.items())
        node = candidates[0][1] if candidates else 0
        if not candidates or not self._nodes[node].view:
            return []
        known = self._nodes[node]
        due = [(node, Order.VOTE)]
        if not known.admitted:
            due.append((node, Order.ADMIT))
        known.admitted = known.votes = True
        return due

    def judge(self, requester: int, victim: int, *, final: bool = False) -> Verdict:
        """Decide on `requester` asking for `victim` to be killed.

        The larger side of a split lives; of equal sides, that with the lowest node. A side that
        would lose waits until the other has said that it misses the requester (a split) or, with
        `final`, until it had time enough to say so and did not (it hangs, and is the victim).
        """
        if victim not in self._nodes:
            return Verdict.KILL  # it is dead already
        if requester not in self._nodes:
            return Verdict.LOSE
        if not self._nodes[victim].admitted:
            # It has no locks, so this is about a former life of it, and that is over.
            return Verdict.DEAD
        if victim in self._nodes[requester].view and not final:
            return Verdict.WAIT  # its request has overtaken its view
        return self._judge_split(requester, victim, final=final)

    def _judge_split(self, requester: int, victim: int, *, final: bool) -> Verdict:
        voters = self.voters
        ours = (self._nodes[requester].view - {victim}) & voters
        theirs = voters - ours
        if victim not in voters or not theirs or _beats(ours, theirs):
            return Verdict.KILL
        if any(self._nodes[n].view and requester not in self._nodes[n].view for n in theirs):
            return Verdict.LOSE
        return Verdict.KILL if final else Verdict.WAIT


def _beats(ours: frozenset[int], theirs: frozenset[int]) -> bool:
    if len(ours) != len(theirs):
        return len(ours) > len(theirs)
    return min(ours) < min(theirs)
