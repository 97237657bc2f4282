"""What a move sends: pages as CRIU has them, then the other images."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ssi.common.errors import ProtocolError
from ssi.node.migration import pages
from ssi.node.migration.pages import Received
from ssi.node.smallfiles import read_bytes, write_bytes

LONGEST_NAME = 100
PIECE = 1024 * 1024
BUFFER = SMALL = 64 * 1024
SUFFIX = ".img"

_HEAD = struct.Struct("=HQ")

T = TypeVar("T")


def send_images(connection: socket.socket, folder: Path) -> None:
    """Send the images of a folder; raises OSError."""
    # CRIU may have left it so that what is less than a frame waits.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    # Most are of a few bytes: they go at once.
    small = b""
    for text in sorted(os.listdir(folder)):
        if not text.endswith(SUFFIX):
            continue
        name, path = os.fsencode(text), folder / text
        size = path.stat().st_size
        small += _HEAD.pack(len(name), size) + name
        if size <= SMALL:
            small += read_bytes(path)
            continue
        connection.sendall(small)
        small = b""
        with path.open("rb") as file:
            connection.sendfile(file, count=size)
    connection.sendall(small + _HEAD.pack(0, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


def receive_images(connection: socket.socket, folder: Path) -> None:
    """Write the images that come into a folder; raises OSError, ProtocolError."""
    with connection.makefile("rb", BUFFER) as stream:
        while True:
            length, size = _HEAD.unpack(_read(stream.read, _HEAD.size))
            if not length:
                return
            name = os.fsdecode(_read(stream.read, min(length, LONGEST_NAME)))
            if length > LONGEST_NAME or "/" in name or not name.endswith(SUFFIX):
                raise ProtocolError(f"an image called {name!r:.60}")
            if size <= SMALL:
                write_bytes(folder / name, _read(stream.read, size), os.O_EXCL)
                continue
            with (folder / name).open("xb") as file:
                while size:
                    data = _read(stream.read, min(size, PIECE))
                    file.write(data)
                    size -= len(data)


def _read(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    if len(data) < size:
        raise ProtocolError("the images have no end")
    return data


def receive_all(
    connection: socket.socket, folder: Path, expected: int = 0, *, apart: bool = False
) -> Received:
    """Write the pages and the other images that come into a folder; raises as these do."""
    received = pages.receive(connection, folder, expected, apart=apart)
    receive_images(connection, folder)
    return received


async def alone(
    connection: socket.socket, work: Callable[[socket.socket, Path], T], folder: Path
) -> T:
    """Do what blocks by a thread of its own; whoever cancels it breaks the connection."""
    connection.setblocking(True)
    with concurrent.futures.ThreadPoolExecutor(1, "move") as thread:
        try:
            return await asyncio.get_running_loop().run_in_executor(
                thread, work, connection, folder
            )
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            raise
