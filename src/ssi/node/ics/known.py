"""Who may talk: the living nodes of the view, each in its present life."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ssi.common.changes import Changes
from ssi.common.errors import NodeLost, ProtocolError
from ssi.node.ics.hello import Hello
from ssi.node.state.view import View


class Known:
    """The nodes that may talk, and who wants to hear of those that no longer may."""

    def __init__(self, own: Hello) -> None:
        self.own = own
        self.changes = Changes()
        self.on_loss: list[Callable[[int], None]] = []
        """Called with each node that has died or begun a new life."""
        self._boots: Mapping[int, str] = {}

    def set_members(self, view: View) -> None:
        """These are the living nodes now."""
        before, self._boots = self._boots, {n: view.boot_of(n) for n in view.alive}
        for node, boot in before.items():
            if self._boots.get(node) != boot:
                for lose in self.on_loss:
                    lose(node)
        self.changes.tell()

    def is_alive(self, node: int) -> bool:
        """Tell whether `node` may talk."""
        return node == self.own.node or node in self._boots

    def check_alive(self, node: int) -> None:
        """Raise NodeLost unless `node` may talk."""
        if not self.is_alive(node):
            raise NodeLost(f"node{node} is not up", hint="`cluster` shows who is")

    def check(self, hello: Hello) -> None:
        """Raise ProtocolError unless who says `hello` may talk."""
        if hello.cluster != self.own.cluster:
            raise ProtocolError(
                f"it is of cluster {hello.cluster!r}, and we of {self.own.cluster!r}"
            )
        if hello.node not in self._boots:
            raise ProtocolError(f"node{hello.node} is not in the view")
        if hello.boot != self._boots[hello.node]:
            raise ProtocolError(f"this life of node{hello.node} is not in the view")

    def admits(self, hello: Hello) -> bool:
        """Tell whether who says `hello` may talk."""
        try:
            self.check(hello)
        except ProtocolError:
            return False
        return True
