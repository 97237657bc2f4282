"""What FIFOs are called among the nodes: by their file handles, which a rename does not change."""

from __future__ import annotations

import struct

from ssi.common.errors import ProtocolError
from ssi.node.state.fifos import check_name

_NAME = struct.Struct("=II8I")
SIZE = _NAME.size


def read_name(data: bytes) -> str:
    """Return the name in a request of the kernel (struct fifo_name of native/fifokeeper.h)."""
    if len(data) != SIZE:
        raise ProtocolError(f"a file handle of {len(data)} bytes")
    kind, count, *words = _NAME.unpack(data)
    return check_name("-".join([f"{kind:x}", *(f"{word:08x}" for word in words[:count])]))


def pack_name(name: str) -> bytes:
    """Return what read_name reads."""
    kind, *words = (int(word, 16) for word in check_name(name).split("-"))
    return _NAME.pack(kind, len(words), *words, *([0] * (8 - len(words))))
