"""Log files of limited size."""

from __future__ import annotations

import contextlib
from pathlib import Path


def older(path: Path) -> Path:
    """Return where a log's older part is."""
    return path.with_name(f"{path.name}.1")


def append(path: Path, text: str, limit: int) -> None:
    """Append `text` to the log at `path`; one that is full becomes the older part before."""
    data = text.encode(errors="backslashreplace")
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size + len(data) > limit:
            path.replace(older(path))
    with path.open("ab", 0) as file:
        file.write(data)
