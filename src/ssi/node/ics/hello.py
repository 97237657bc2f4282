"""The first message each way: who is there, of which cluster, in which life."""

from __future__ import annotations

import dataclasses

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message

VERSION = 1
MAX_NAME = 64
MAX_VERSION = 2**31


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """What a daemon says of itself; `boot` names this life of its node."""

    cluster: str
    node: int
    boot: str

    def message(self) -> Message:
        """Return it as a message."""
        return {"is": "hello", "version": VERSION, **dataclasses.asdict(self)}


def parse_hello(message: Message) -> Hello:
    """Return the hello in `message`, or raise ProtocolError."""
    if message.get("is") == "refused":
        raise ProtocolError(f"it refuses us: {wire.get_text(message, 'why'):.200}")
    wire.get_word(message, "is", ("hello",))
    version = wire.get_int(message, "version", 0, MAX_VERSION)
    if version != VERSION:
        raise ProtocolError(f"it speaks version {version}, and we {VERSION}")
    texts = {key: wire.get_text(message, key) for key in ("cluster", "boot")}
    for key, text in texts.items():
        if not 0 < len(text) <= MAX_NAME:
            raise ProtocolError(f"field {key!r} has {len(text)} characters")
    return Hello(node=wire.get_int(message, "node", 1, MAX_NODE), **texts)
