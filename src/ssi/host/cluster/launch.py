"""Starting a cluster: check what was asked for, give it a root of its own, run its supervisor."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.common.rotating import older
from ssi.host.cluster.client import Hear, ask
from ssi.host.cluster.key import make_key
from ssi.host.cluster.member import read_tail
from ssi.host.cluster.spec import FIRST_ID, LAST_ID, ClusterPlace, ClusterSpec
from ssi.host.cluster.stopping import END_S, wait_unlocked
from ssi.host.disk import copy_disk, explain_full_disk
from ssi.host.paths import TOP, failed_boot_dir

GFS2_SUPERBLOCK = 64 * 1024
GFS2_MAGIC = b"\x01\x16\x19\x70"


@dataclasses.dataclass(frozen=True, slots=True)
class StartRequest:
    """What `ssi start` asks for."""

    nodes: tuple[int, ...]
    kernel: Path
    ramdisk: Path
    root: Path
    cluster: int = FIRST_ID
    memory_mib: int = 160
    swap_mib: int = 64
    token_ms: int = 1000
    fresh: bool = False
    publish: tuple[str, ...] = ()


def _check_file(path: Path, what: str, magics: tuple[bytes, ...], *, at: int = 0) -> None:
    try:
        with path.open("rb") as file:
            file.seek(at)
            start = file.read(8)
    except OSError as error:
        raise SsiError(
            f"{what} {path}: {error.strerror}", hint="make one with `ssi build all`"
        ) from error
    if not start.startswith(magics):
        raise SsiError(f"{path} is not a {what}", hint="make one with `ssi build all`")


def check_images(request: StartRequest) -> None:
    """Raise SsiError unless kernel, ramdisk and root are what they should be."""
    _check_file(request.kernel, "kernel", (b"\x7fELF",))
    if not os.access(request.kernel, os.X_OK):
        raise SsiError(f"kernel {request.kernel} may not be executed", hint="chmod +x it")
    _check_file(request.ramdisk, "ramdisk", (b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"070701"))
    _check_file(request.root, "root image", (GFS2_MAGIC,), at=GFS2_SUPERBLOCK)


def find_free_cluster() -> int:
    """Return the lowest cluster number that is neither running nor kept."""
    for number in range(FIRST_ID, LAST_ID + 1):
        place = ClusterPlace(number)
        if not place.state.exists() and not place.runtime.exists():
            return number
    raise SsiError("all cluster numbers are taken", hint="`ssi clean` frees some")


@contextlib.contextmanager
def locked(place: ClusterPlace) -> Iterator[int]:
    """Hold the cluster's lock; yields its descriptor, which a child may inherit and hold on."""
    fd = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise SsiError(
            f"cluster {place.id} is running already, or starting or stopping",
            hint=f"add nodes with `ssi add {place.id} NODE…`, "
            "or start another one with `ssi start --new`",
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _describe(root: Path) -> str:
    status = root.stat()
    return f"{root.resolve()} {status.st_size} {status.st_mtime_ns}"


def _prepare_root(place: ClusterPlace, request: StartRequest, *, explicit: bool) -> None:
    """Give the cluster its own copy of the root, or keep the one it has."""
    source = _describe(request.root)
    if place.root.exists() and not request.fresh:
        kept = ClusterSpec.from_json(place.spec.read_text()).root_source
        if explicit and kept != source:
            raise SsiError(
                f"cluster {place.id} has a root of its own, copied from {kept.split()[0]}",
                hint="begin anew from the other with `--fresh` (what was written is lost), "
                "or start another cluster with `--new`",
            )
        _check_file(place.root, "root image", (GFS2_MAGIC,), at=GFS2_SUPERBLOCK)
        return
    copy_disk(request.root, place.root)


def _write_spec(place: ClusterPlace, request: StartRequest) -> None:
    kept = _describe(request.root)
    if place.spec.exists() and not request.fresh:
        kept = ClusterSpec.from_json(place.spec.read_text()).root_source
    spec = ClusterSpec(
        id=place.id, kernel=request.kernel.resolve(), ramdisk=request.ramdisk.resolve(),
        root_source=kept, memory_mib=request.memory_mib, swap_mib=request.swap_mib,
        token_ms=request.token_ms, publish=request.publish,
    )  # fmt: skip
    partial = place.spec.with_suffix(".partial")
    with explain_full_disk(place.spec):
        partial.write_text(spec.to_json())
        partial.rename(place.spec)


def _run_supervisor(place: ClusterPlace, lock: int) -> subprocess.Popen[bytes]:
    """Start the cluster's process; return it when its control socket is there."""
    read_end, write_end = os.pipe()
    if place.supervisor_log.exists():
        place.supervisor_log.replace(older(place.supervisor_log))
    with os.fdopen(read_end, "rb") as ready, place.supervisor_log.open("ab") as log:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ssi.host.cluster.guard",
                 str(place.id), str(lock), str(write_end)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(lock, write_end), start_new_session=True, cwd="/",
                env={**os.environ, "PYTHONPATH": str(TOP / "src")},
            )  # fmt: skip
        finally:
            os.close(write_end)
        try:
            begun = ready.read(1)
        except BaseException:  # Ctrl-C, and it would wait for a request
            process.terminate()
            raise
        if not begun:
            said = read_tail(place.supervisor_log)
            raise SsiError(f"the supervisor did not start: {said}", hint=str(place.supervisor_log))
    return process


@contextlib.contextmanager
def _logs_kept(place: ClusterPlace) -> Iterator[None]:
    """Keep the logs of the last boot that failed; its cluster may be gone with its folder."""
    try:
        yield
    except SsiError as error:
        kept = failed_boot_dir()
        shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(OSError):  # a full disk is no reason to say something else
            shutil.copytree(place.logs, kept)
            error.hint = f"its logs are kept in {kept}"
        raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait until this is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_folder(place: ClusterPlace) -> None:
    try:
        place.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SsiError(
            f"{place.logs} cannot be made: {error.strerror}",
            hint="point XDG_STATE_HOME to a folder of yours",
        ) from error


def start_cluster(
    request: StartRequest, hear: Hear, *, explicit_root: bool
) -> tuple[ClusterPlace, list[str]]:
    """Start a cluster; return when all its nodes are up, with notes on what it goes without.

    A failure leaves nothing new behind.
    """
    check_images(request)
    place = ClusterPlace(request.cluster)
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as held:
        with _uninterrupted():
            _make_folder(place)
            lock = held.enter_context(locked(place))
            if not place.spec.exists():
                undo.callback(shutil.rmtree, place.state, ignore_errors=True)
        _prepare_root(place, request, explicit=explicit_root)
        _write_spec(place, request)
        with explain_full_disk(place.key):
            make_key(place)
        _make_runtime_base(place)
        undo.callback(shutil.rmtree, place.runtime, ignore_errors=True)
        _make_runtime(place)
        # Runs when our own hold on the lock is gone: what is left then is the supervisor, which
        # ends as soon as it sees us go, and must not lose its folders before.
        undo.callback(wait_unlocked, place, END_S)
        supervisor = _run_supervisor(place, lock)
        # It may not have heard of us yet.
        undo.callback(supervisor.terminate)
        with _logs_kept(place):
            answer = ask(place, {"do": "start", "nodes": list(request.nodes)}, hear)
        undo.pop_all()
    return place, [str(note) for note in answer["notes"]]


def _make_runtime_base(place: ClusterPlace) -> None:
    base = place.runtime.parent
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    # lstat: below /tmp anybody could have laid a link there.
    if base.lstat().st_uid != os.getuid() or base.is_symlink():
        raise SsiError(f"{base} belongs to somebody else", hint="set XDG_RUNTIME_DIR")


def _make_runtime(place: ClusterPlace) -> None:
    if place.runtime.exists():  # we have the lock: nobody uses it
        shutil.rmtree(place.runtime)
    (place.runtime / "uml").mkdir(parents=True, mode=0o700)
