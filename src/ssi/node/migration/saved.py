"""The file of a process that was saved: two lines that say what it is, one that signs them, images.

    SSI checkpoint 1
    {"pid": ..., ...}
    HMAC-SHA256 of both lines, by a key that only root can read
    the images, one behind the other, in the order of the second line

The second line has size and digest of each image. So what a cluster did not write itself it refuses
at the third line: a forged image could have CRIU, which is root, do anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.wire import Message
from ssi.node.migration.belongings import Belongings
from ssi.node.migration.clocks import Clocks
from ssi.node.process.caller import MAX_PID, MAX_UID
from ssi.node.root import SYSROOT

MAGIC = b"SSI checkpoint 1\n"
KEY = SYSROOT / "var/lib/ssi/checkpoint.key"
KEY_BYTES = 32
MAX_HEADER = 4 * 2**20
MAX_IMAGES = 4096
PIECE = 2**20

_SIGNED = 64


class BadFile(SsiError):
    """It is not what a cluster has written, or not whole."""

    code = "bad-file"
    exit_status = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A file of CRIU's."""

    name: str
    size: int
    digest: str

    @classmethod
    def load(cls, message: Message) -> Image:
        """Read it from a message, or raise ProtocolError."""
        name = wire.get_text(message, "name")
        if "/" in name or not name.endswith(".img"):
            raise ProtocolError(f"an image called {name!r:.60}")
        return cls(name, wire.get_int(message, "size", 0, 2**50), wire.get_text(message, "digest"))


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """What a file says of its process."""

    pid: int
    threads: Sequence[int]
    argv: Sequence[str]
    uids: Sequence[int]
    gids: Sequence[int]
    groups: Sequence[int]
    node: int
    """Where it ran."""
    time: int
    """When it was saved, in seconds."""
    kernel: str
    processor: Sequence[str]
    """What its processor could do."""
    pages: int
    clocks: Clocks
    terminals: Sequence[tuple[int, int]]
    """File entries of the images that were terminals, and the descriptor that each is."""
    belongings: Belongings
    images: Sequence[Image] = ()

    def dump(self) -> Message:
        """Return it as a message."""
        words = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        words.update(
            clocks=self.clocks.dump(), belongings=self.belongings.dump(),
            images=[dataclasses.asdict(image) for image in self.images],
        )  # fmt: skip
        return words

    def with_images(self, images: Sequence[Image]) -> Saved:
        """Return it with what is said of its images."""
        return dataclasses.replace(self, images=images)

    @classmethod
    def load(cls, message: Message) -> Saved:
        """Read it from a message, or raise ProtocolError."""
        pairs = message.get("terminals")
        try:
            terminals = [(int(entry), int(fd)) for entry, fd in pairs]  # type: ignore[union-attr]
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"terminals {pairs!r:.60}") from error
        return cls(
            wire.get_int(message, "pid", 1, MAX_PID),
            wire.get_ints(message, "threads", 1, MAX_PID), wire.get_texts(message, "argv"),
            wire.get_ints(message, "uids", 0, MAX_UID), wire.get_ints(message, "gids", 0, MAX_UID),
            wire.get_ints(message, "groups", 0, MAX_UID),
            wire.get_int(message, "node", 1, 127), wire.get_int(message, "time", 0, 2**40),
            wire.get_text(message, "kernel"), wire.get_texts(message, "processor"),
            wire.get_int(message, "pages", 0, 2**40),
            Clocks.load(wire.get_object(message, "clocks")), terminals,
            Belongings.load(wire.get_object(message, "belongings")),
            [Image.load(one) for one in wire.get_objects(message, "images")],
        )  # fmt: skip


def read_key(path: Path = KEY) -> bytes:
    """Return the key that all nodes sign by; the first to need one makes it. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return _check_key(path.read_bytes())
    path.parent.mkdir(mode=0o755, exist_ok=True)
    fresh = path.with_suffix(f".{secrets.token_hex(8)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(fd)
    try:
        # Two nodes may do so at the same time: the first one's counts.
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
    return _check_key(path.read_bytes())


def _check_key(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise BadFile(f"/{KEY.relative_to(SYSROOT)} has {len(key)} bytes instead of {KEY_BYTES}")
    return key


def _sign(key: bytes, lines: bytes) -> bytes:
    return hmac.digest(key, lines, "sha256").hex().encode()


def digest_images(folder: Path) -> list[Image]:
    """Return what is said of the images in a folder; raises OSError."""
    found = []
    for path in sorted(folder.glob("*.img")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(Image(path.name, path.stat().st_size, digest))
    return found


def render_head(saved: Saved, key: bytes) -> bytes:
    """Return what comes before the images; raises BadFile if it would be too long."""
    lines = MAGIC + wire.encode(saved.dump())
    if len(lines) > MAX_HEADER:
        raise BadFile("it has more files and mappings than can be written down")
    return lines + _sign(key, lines) + b"\n"


Read = Callable[[], Awaitable[bytes]]


class Source:
    """Bytes that come in pieces, none at the end."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._rest = b""

    async def take(self, most: int) -> bytes:
        """Return some of the next bytes; none at the end."""
        if not self._rest:
            self._rest = await self._read()
        data, self._rest = self._rest[:most], self._rest[most:]
        return data

    async def take_line(self, most: int) -> bytes:
        """Return a line, or what there is without an end of one."""
        line = bytearray()
        while len(line) < most:
            data = await self.take(most - len(line))
            end = data.find(b"\n") + 1
            if not data or end:
                line += data[:end] if end else data
                self._rest = data[end:] + self._rest if end else self._rest
                break
            line += data
        return bytes(line)


async def receive_head(source: Source, key: bytes) -> Saved:
    """Return what a file says that this cluster has signed; raises BadFile."""
    if await source.take_line(len(MAGIC)) != MAGIC:
        raise BadFile("it is no process that was saved by `checkpoint`, or by another version")
    line = await source.take_line(MAX_HEADER)
    signed = await source.take_line(_SIGNED + 1)
    if not hmac.compare_digest(signed, _sign(key, MAGIC + line) + b"\n"):
        raise BadFile("it was not written by this cluster, or is not whole, or has been changed")
    return Saved.load(wire.decode(line))


async def receive_images(source: Source, saved: Saved, folder: Path) -> None:
    """Write the images of a file into a folder; raises BadFile, OSError."""
    for image in saved.images:
        digest, left = hashlib.sha256(), image.size
        with (folder / image.name).open("xb", buffering=0) as file:
            while left:
                data = await source.take(min(left, PIECE))
                if not data:
                    raise BadFile("it is not whole: its end is missing")
                digest.update(data)
                file.write(data)
                left -= len(data)
        if not hmac.compare_digest(digest.hexdigest(), image.digest):
            raise BadFile("it has been changed since it was written")
    if await source.take(1):
        raise BadFile("something was added to it")
