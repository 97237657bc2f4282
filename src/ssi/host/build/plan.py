"""An artifact: a file, what it is made from, and how. It is made again when any input differs."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ssi.common.errors import BuildError
from ssi.host.build.digest import digest_file, digest_text
from ssi.host.build.options import Report
from ssi.host.paths import cache_dir

FORMAT = 1
"""Of the record beside an artifact."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file in the cache.

    `build` gets a folder of its own, in which what an interrupted build left is found again, and
    returns the finished file in it. Artifacts in `needs` are made first.
    """

    name: str
    file: str
    inputs: Mapping[str, str]
    build: Callable[[Path, Report], Path]
    needs: tuple[Artifact, ...] = ()
    final: bool = False
    """Nothing is made from it, so that its contents need not be read (it may be large)."""

    @property
    def path(self) -> Path:
        """Where the finished file is."""
        return cache_dir() / "images" / self.file

    @property
    def record(self) -> Path:
        """Where its inputs are noted."""
        return self.path.with_name(self.path.name + ".inputs.json")

    @property
    def work(self) -> Path:
        """The folder it is built in."""
        return cache_dir() / "work" / self.file

    def all_inputs(self) -> dict[str, str]:
        """Return the digest of each input; another artifact counts with its contents."""
        return {**self.inputs, **{need.name: need.contents() for need in self.needs}}

    def contents(self) -> str:
        """Return the digest of the finished file, or of what it will be made from."""
        record = _read_record(self)
        if record and self.path.exists() and record.inputs == self.all_inputs():
            return record.contents
        return digest_text(json.dumps(self.all_inputs(), sort_keys=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is noted beside a finished artifact."""

    inputs: dict[str, str]
    contents: str


def _read_record(artifact: Artifact) -> Record | None:
    """Return the record of `artifact`, None if there is none that we understand."""
    try:
        match json.loads(artifact.record.read_text()):
            case {"format": int(form), "inputs": dict(inputs), "contents": str(contents)}:
                known = {str(name): str(digest) for name, digest in inputs.items()}
                return Record(known, contents) if form == FORMAT else None
    except (OSError, ValueError):
        pass
    return None


def explain_stale(artifact: Artifact) -> str | None:
    """Return why `artifact` has to be made, None if it is as it would be made now."""
    if not artifact.path.exists():
        return "not built yet"
    record = _read_record(artifact)
    if record is None:
        return "unknown what it was built from"
    before, now = record.inputs, artifact.all_inputs()
    reasons = [f"{name} changed" for name in now if name in before and before[name] != now[name]]
    reasons += [f"{name} is new" for name in now if name not in before]
    reasons += [f"{name} is gone" for name in before if name not in now]
    if not reasons:
        return None
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return ", ".join(reasons[:3]) + more


@contextlib.contextmanager
def locked(name: str, report: Report) -> Iterator[None]:
    """Hold the lock `name` of the cache; the kernel lets go of it when we end in any way."""
    path = cache_dir() / "locks" / name.replace("/", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.note(f"waiting for another build of {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Turn what a disk may refuse into one line with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise full_disk(folder) from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise BuildError(
                f"{error.filename or folder}: {error.strerror}",
                hint="point XDG_CACHE_HOME to a folder of yours",
            ) from error
        raise


def full_disk(folder: Path) -> BuildError:
    """Return the error for a disk without room."""
    return BuildError(
        f"no room left on the disk that holds {folder}",
        hint="free some (a build needs 4 GB), or point XDG_CACHE_HOME to a larger disk;"
        " then build again: it goes on where it was",
    )


def _publish(artifact: Artifact, built: Path) -> None:
    """Put `built` where others see it: they see the old one or the new one, nothing between."""
    artifact.path.parent.mkdir(parents=True, exist_ok=True)
    contents = "" if artifact.final else digest_file(built)
    record = {"format": FORMAT, "inputs": artifact.all_inputs(), "contents": contents}
    staged = artifact.work / "inputs.json"
    staged.write_text(json.dumps(record, indent=1) + "\n")
    # In this order: a crash in between leaves an artifact that counts as stale, not as fresh.
    artifact.record.unlink(missing_ok=True)
    built.rename(artifact.path)
    staged.rename(artifact.record)


def ensure(artifact: Artifact, report: Report, *, force: bool = False) -> Path:
    """Make `artifact`, and what it needs, if it is stale; return the finished file.

    `force` is for this one alone.
    """
    for need in artifact.needs:
        ensure(need, report)
    with explain_disk(cache_dir()), locked(artifact.file, report):
        # Asked only now: somebody else may have made it while we waited for the lock.
        reason = "as asked" if force else explain_stale(artifact)
        if reason:
            report.note(f"building {artifact.name}: {reason}")
            artifact.work.mkdir(parents=True, exist_ok=True)
            _publish(artifact, artifact.build(artifact.work, report))
    return artifact.path


def remove(path: Path) -> None:
    """Remove `path`, a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a name to make `path` under; it gets its own name only when all went well."""
    partial = path.with_name(path.name + ".partial")
    remove(partial)
    try:
        yield partial
    except BaseException:
        remove(partial)
        raise
    remove(path)
    partial.replace(path)
