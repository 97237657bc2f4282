"""What this machine must have and allow for clusters to be built and run, with the remedies."""

from __future__ import annotations

import dataclasses
import enum
import os
import platform
import pwd
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ssi.common.errors import BuildError
from ssi.host import probes
from ssi.host.build.apt import find_mirror
from ssi.host.packages import Need, Package, read_packages
from ssi.host.paths import cache_dir, runtime_dir, state_dir

NODE_MIB = 160
"""Memory of a node, as `ssi start` gives it."""

START_NODES = 3

BUILD_MIB = 4 * 1024
"""Sources, objects, packages and the finished images in the cache."""

KEEP_MIB = 1536
"""A cluster's root and swap, when the file system cannot share blocks with the cached one."""

MODULES = ("elftools", "rich", "shtab", "zstandard")

SOCKET_PATH_BYTES = 107
LONGEST_SOCKET = "10001/uml/n127-4194304-9999.notify"

PROCESSES_EACH = 64
FILES = 1024
SUBORDINATE_IDS = 65536


class State(enum.Enum):
    """How a requirement is met."""

    OK = "ok"
    MISSING = "missing"
    OPTIONAL = "optional"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One requirement: what was found, and the remedy where it is not met."""

    name: str
    need: str
    state: State
    found: str
    remedy: str = ""


def _check(name: str, need: Need, trouble: str | None, found: str, remedy: str) -> Check:
    if trouble is None:
        return Check(name, need.value, State.OK, found)
    required = need in {Need.RUN, Need.BUILD}
    state = State.MISSING if required else State.OPTIONAL
    return Check(name, need.value, state, trouble, remedy)


def examine_host() -> Iterator[Check]:
    """Yield all requirements, one after the other, as they are tried."""
    yield from _check_machine()
    yield from _check_room()
    yield from _check_limits()
    yield _check_socket_paths()
    yield from map(_check_package, read_packages())
    yield from _check_namespaces()
    yield _check_mirror()


def _check_machine() -> Iterator[Check]:
    machine = platform.machine()
    yield _check(
        "processor", Need.RUN, None if machine == "x86_64" else f"{machine}, not x86_64", machine,
        "User-Mode Linux runs on x86_64 only",
    )  # fmt: skip
    yield _check(
        "python", Need.RUN, probes.try_imports(*MODULES), platform.python_version(),
        f"make -C {Path(sys.prefix).parent} setup",
    )  # fmt: skip
    yield _check(
        "seccomp", Need.RUN, probes.try_seccomp(), "allowed",
        "nodes run their processes under a seccomp filter; let the container's policy allow it",
    )  # fmt: skip
    yield _check(
        "ptrace", Need.EXTRA, probes.try_ptrace(), "allowed",
        "only debuggers need it; in a container: --cap-add SYS_PTRACE",
    )  # fmt: skip


def _check_room() -> Iterator[Check]:
    wanted = NODE_MIB * START_NODES
    folder = probes.memory_folder()
    yield _check(
        "memory files", Need.RUN, probes.try_executable_memory(folder), f"{folder}, executable",
        f"remount {folder} without noexec: nodes keep their memory there and run from it",
    )  # fmt: skip
    yield _check_free(
        "room for memory", Need.RUN, folder, wanted,
        f"enlarge {folder}; in a container: --shm-size",
    )  # fmt: skip
    available = _available_memory_mib()
    yield _check(
        "memory", Need.RUN,
        None if available >= wanted else f"{available} MiB available, {wanted} are too few nodes'",
        f"{available} MiB available, a node takes up to {NODE_MIB}", "start fewer nodes at a time",
    )  # fmt: skip
    yield _check_free(
        "room for builds", Need.BUILD, cache_dir(), BUILD_MIB,
        "free some, or point XDG_CACHE_HOME to a larger disk",
    )  # fmt: skip
    yield _check_free(
        "room for clusters", Need.RUN, state_dir(), KEEP_MIB,
        "free some (`ssi clean --kept`), or point XDG_STATE_HOME to a larger disk",
    )  # fmt: skip


def _available_memory_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _check_free(name: str, need: Need, folder: Path, wanted_mib: int, remedy: str) -> Check:
    base = _existing(folder)
    free = shutil.disk_usage(base).free >> 20
    trouble = None
    if free < wanted_mib:
        trouble = f"{free} MiB free in {base}, {wanted_mib} are needed"
    elif not os.access(base, os.W_OK):
        trouble = f"{base} may not be written to"
    return _check(name, need, trouble, f"{free} MiB free in {base}", remedy)


def _check_limits() -> Iterator[Check]:
    limits = (
        ("processes", resource.RLIMIT_NPROC, PROCESSES_EACH * START_NODES, "ulimit -u"),
        ("open files", resource.RLIMIT_NOFILE, FILES, "ulimit -n"),
    )
    for name, limit, wanted, command in limits:
        soft, _ = resource.getrlimit(limit)
        enough = soft == resource.RLIM_INFINITY or soft >= wanted
        found = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        trouble = None if enough else f"{soft} at most, {wanted} are needed"
        yield _check(name, Need.RUN, trouble, found, f"{command} {wanted}")


def _check_socket_paths() -> Check:
    folder = runtime_dir()
    length = len(os.fsencode(folder / LONGEST_SOCKET))
    trouble = None
    if length > SOCKET_PATH_BYTES:
        trouble = f"{folder} is too long for sockets in it"
    elif folder.exists() and folder.stat().st_uid != os.getuid():
        trouble = f"{folder} belongs to somebody else"
    remedy = "set XDG_RUNTIME_DIR to a short path of a folder of yours"
    return _check("runtime folder", Need.RUN, trouble, os.fspath(folder), remedy)


def _check_package(package: Package) -> Check:
    found = package.find()
    trouble = None if found else f"not installed: {package.reason}"
    remedy = f"apt-get install {package.name}"
    return _check(package.name, package.need, trouble, found or "", remedy)


def _count_ids(table: Path, user: pwd.struct_passwd) -> int:
    if not table.exists():
        return 0
    rows = (line.split(":") for line in table.read_text().splitlines())
    names = {user.pw_name, str(user.pw_uid)}
    return sum(int(row[2]) for row in rows if len(row) == 3 and row[0] in names)


def _check_namespaces() -> Iterator[Check]:
    if os.getuid() == 0:
        return  # root has all the user numbers already
    yield _check(
        "user namespaces", Need.BUILD, probes.try_command("unshare", "-U", "true"), "allowed",
        "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
        "kernel.apparmor_restrict_unprivileged_userns=0",
    )  # fmt: skip
    user = pwd.getpwuid(os.getuid())
    for table in (Path("/etc/subuid"), Path("/etc/subgid")):
        count = _count_ids(table, user)
        kind = table.name.removeprefix("sub")
        trouble = None if count >= SUBORDINATE_IDS else f"{count} of {SUBORDINATE_IDS} numbers"
        yield _check(
            os.fspath(table), Need.BUILD, trouble, f"{count} numbers",
            f"as root: usermod --add-sub{kind}s 100000-165535 {user.pw_name}",
        )  # fmt: skip
    yield _check(
        "newuidmap", Need.BUILD,
        probes.try_command("unshare", "-U", "--map-root-user", "--map-auto", "true"), "works",
        "install uidmap; its programs must be set-user-id root",
    )  # fmt: skip


def _check_mirror() -> Check:
    found, trouble, remedy = "", None, ""
    try:
        found = find_mirror().uri
    except BuildError as error:
        trouble, remedy = str(error), error.hint or ""
    return _check("package mirror", Need.BUILD, trouble, found, remedy)
