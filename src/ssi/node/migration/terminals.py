"""The terminals of a process that is saved: they lead elsewhere when it is restarted."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ssi.node.migration import rewrite
from ssi.node.migration.images import Fields, Image

_ID, _DETAILS = 2, 15
_FD_ID, _FD = 1, 4
_STANDARD = 3


def free(folder: Path, fds: Collection[int]) -> list[tuple[int, int]]:
    """Have the plugin open these descriptors; return file entries, and which descriptor each is.

    The standard ones get an entry each: they may lead to different places next time.
    """
    found = rewrite.list_files(folder)
    rewrite.make_external(folder, {found[fd][0] for fd in fds})
    files = Image(folder / "files.img")
    by_id = {entry.number(_ID): entry for entry in files.entries}
    taken: dict[int, int] = {}
    chosen: dict[int, int] = {}
    for fd in sorted(fds):
        entry = found[fd][0]
        if entry in taken and fd < _STANDARD:
            fresh = max(by_id) + 1
            by_id[fresh] = _copy(by_id[entry], fresh)
            files.entries.append(by_id[fresh])
            entry = chosen[fd] = fresh
        taken.setdefault(entry, fd)
    files.save()
    for path in folder.glob("fdinfo-*.img"):
        image = Image(path)
        for one in image.entries:
            if one.number(_FD) in chosen:
                one.set(_FD_ID, chosen[one.number(_FD)])
        image.save()
    return list(taken.items())


def _copy(entry: Fields, number: int) -> Fields:
    fresh = Fields(entry.dump())
    fresh.set(_ID, number)
    fresh.change(_DETAILS, lambda details: details.set(1, number))
    return fresh
