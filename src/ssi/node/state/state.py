"""All that members know alike, and the operations on it."""

from __future__ import annotations

import dataclasses

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.state.fifos import Fifos
from ssi.node.state.init import Init
from ssi.node.state.ipc import Ipc
from ssi.node.state.queues import Queues
from ssi.node.state.registers import Registers
from ssi.node.state.replica import Machine
from ssi.node.state.view import View


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The replicated state."""

    view: View = dataclasses.field(default_factory=View)
    init: Init = dataclasses.field(default_factory=Init)
    registers: Registers = dataclasses.field(default_factory=Registers)
    fifos: Fifos = dataclasses.field(default_factory=Fifos)
    ipc: Ipc = dataclasses.field(default_factory=Ipc)
    queues: Queues = dataclasses.field(default_factory=Queues)


def _apply(state: State, _: int, operation: Message) -> State:
    part = wire.get_text(operation, "on")
    match part:
        case "view":
            return dataclasses.replace(state, view=state.view.apply(operation))
        case "init":
            return dataclasses.replace(state, init=state.init.apply(operation, state.view))
        case "registers":
            return dataclasses.replace(state, registers=state.registers.apply(operation))
        case "fifos":
            return dataclasses.replace(state, fifos=state.fifos.apply(operation, state.view))
        case "ipc":
            return dataclasses.replace(state, ipc=state.ipc.apply(operation, state.view))
        case "queues":
            return dataclasses.replace(state, queues=state.queues.apply(operation, state.view))
        case _:
            raise ProtocolError(f"no part of the state: {part!r:.40}")


def _dump(state: State) -> Message:
    return {
        "view": state.view.dump(), "init": state.init.dump(), "registers": state.registers.dump(),
        "fifos": state.fifos.dump(), "ipc": state.ipc.dump(),
        "queues": state.queues.dump(),
    }  # fmt: skip


def _load(message: Message) -> State:
    return State(
        View.load(wire.get_object(message, "view")), Init.load(wire.get_object(message, "init")),
        Registers.load(wire.get_object(message, "registers")),
        Fifos.load(wire.get_object(message, "fifos")), Ipc.load(wire.get_object(message, "ipc")),
        Queues.load(wire.get_object(message, "queues")),
    )  # fmt: skip


MACHINE: Machine[State] = Machine(State(), _apply, _dump, _load)
