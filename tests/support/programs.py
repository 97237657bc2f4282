"""Programs of tests/programs, for nodes."""

from __future__ import annotations

from pathlib import Path

from ssi.host import native
from ssi.host.paths import TOP
from support.clusters import Cluster


def install(cluster: Cluster, name: str, folder: Path) -> str:
    """Compile tests/programs/NAME.c, put it on the root, return its path there."""
    program = folder / name
    native.compile_program(TOP / f"tests/programs/{name}.c", program, ["-static"])
    path = f"/usr/local/bin/{name}"
    script = 'cat >"$0" && chmod 755 "$0"'
    cluster.run(1, "sh", "-c", script, path, given=program.read_bytes())
    return path
