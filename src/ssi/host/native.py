"""Small C programs: of the host, compiled on demand into the cache, and of the nodes."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssi.common.errors import BuildError
from ssi.host import paths

FLAGS = (
    "-std=gnu11", "-O2", "-pipe", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2",
)  # fmt: skip

WARNINGS = (
    "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes",
    "-Wvla", "-Wformat=2", "-Wundef", "-Wpointer-arith", "-Wcast-qual", "-Wnull-dereference",
    "-Wimplicit-fallthrough", "-Werror",
)  # fmt: skip
"""The tests compile with these. A user's compiler is newer than ours: its new warnings may not
keep a cluster from starting, so they are no part of FLAGS."""


def program(name: str) -> Path:
    """Return the program made from native/NAME.c, compiling it first when it is not there."""
    source = paths.NATIVE / f"{name}.c"
    target = _target(source)
    if not target.exists():
        _compile(source, target)
    return target


def compile_argv(source: Path, output: Path, flags: Sequence[str] = ()) -> list[str]:
    """Return the compiler's command line."""
    return ["cc", *FLAGS, *flags, os.fspath(source), "-o", os.fspath(output)]


def compile_program(source: Path, output: Path, flags: Sequence[str] = ()) -> None:
    """Compile `source`, or raise BuildError."""
    if not shutil.which("cc"):
        raise BuildError("no C compiler (cc)", hint="apt-get install gcc libc6-dev")
    _run(compile_argv(source, output, flags), source)


def _target(source: Path) -> Path:
    key = hashlib.sha256()
    # The machine too: a home folder may be shared by machines of several kinds.
    for part in (*FLAGS, platform.machine()):
        key.update(part.encode() + b"\0")
    try:
        key.update(source.read_bytes())
    except OSError as error:
        raise BuildError(
            f"{source}: {error.strerror}", hint="the checkout is incomplete: git checkout native"
        ) from error
    return paths.cache_dir() / "native" / f"{source.stem}-{key.hexdigest()[:16]}"


def _compile(source: Path, target: Path) -> None:
    """Compile beside the target and rename: two commands at once never see half a program."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            compile_program(source, output)
            output.replace(target)
    except OSError as error:
        raise BuildError(f"{target.parent}: {error.strerror}") from error


def _run(argv: list[str], source: Path) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error:" in line] or ["cc failed"]
        raise BuildError(
            f"{source.name} does not compile: {lines[0]}", hint="apt-get install gcc libc6-dev"
        )
