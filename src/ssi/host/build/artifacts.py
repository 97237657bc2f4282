"""All that can be built: the kernel, the ramdisk and the root, and what each is made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ssi.host.build.digest import digest_files
from ssi.host.build.kernel import kernel_artifact
from ssi.host.build.options import BuildOptions, Report
from ssi.host.build.plan import Artifact, ensure, explain_stale
from ssi.host.build.ramdisk import collect_ramdisk, own_sources, write_ramdisk
from ssi.host.build.root import root_artifact
from ssi.host.build.tree import TarTree
from ssi.host.build.userland import find_mode, userland_artifact
from ssi.host.paths import IMAGE, TOP, cache_dir

__all__ = [
    "Artifacts", "BuildOptions", "BuildStatus", "Report", "build_all", "build_kernel",
    "build_ramdisk", "build_root", "find_artifacts", "list_status",
]  # fmt: skip

BUILDER = ("bytecode", "cpio", "elf", "modules", "ramdisk", "tree")
"""Modules that shape the ramdisk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Artifacts:
    """What is built already."""

    kernel: Path | None
    ramdisk: Path | None
    root: Path | None


@dataclasses.dataclass(frozen=True, slots=True)
class BuildStatus:
    """One artifact, and why it would be built, if it would."""

    name: str
    path: str
    stale: str
    size: int


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def find_artifacts(suite: str = "trixie") -> Artifacts:
    """Return what is built, fresh or not; takes no time."""
    images = cache_dir() / "images"
    return Artifacts(
        _existing(images / "kernel/linux"),
        _existing(images / f"ramdisk/{suite}/ramdisk.zst"),
        _existing(images / f"root/{suite}/root.img"),
    )


def _ramdisk_artifact(options: BuildOptions, userland: Artifact) -> Artifact:
    own = Path(__file__).parent
    inputs = digest_files([IMAGE / "ramdisk", *own_sources()], TOP)
    inputs |= digest_files([own / f"{name}.py" for name in BUILDER], TOP)

    def build(work: Path, report: Report) -> Path:
        report.step("pack the ramdisk")
        tree = TarTree(userland.path)
        target = work / "ramdisk.zst"
        try:
            size = write_ramdisk(collect_ramdisk(tree), target)
        finally:
            tree.close()
        packed = target.stat().st_size
        report.note(f"the ramdisk has {size / 1e6:.1f} MB, {packed / 1e6:.1f} MB packed")
        return target

    file = f"ramdisk/{options.suite}/ramdisk.zst"
    return Artifact("ramdisk", file, inputs, build, (userland,))


@dataclasses.dataclass(frozen=True, slots=True)
class _All:
    kernel: Artifact
    userland: Artifact
    ramdisk: Artifact
    root: Artifact

    @classmethod
    def plan(cls, options: BuildOptions) -> _All:
        kernel, userland = kernel_artifact(options), userland_artifact(options)
        ramdisk = _ramdisk_artifact(options, userland)
        return cls(kernel, userland, ramdisk, root_artifact(options, kernel, ramdisk, userland))

    def check_host(self) -> None:
        """Raise BuildError now if the userland is to be made and cannot be, not after minutes."""
        if explain_stale(self.userland):
            find_mode()


def build_kernel(options: BuildOptions, report: Report) -> Path:
    """Make the kernel if it is stale; return its path."""
    return ensure(kernel_artifact(options), report, force=options.force)


def build_ramdisk(options: BuildOptions, report: Report) -> Path:
    """Make the ramdisk if it is stale, the userland before it; return its path."""
    artifacts = _All.plan(options)
    artifacts.check_host()
    return ensure(artifacts.ramdisk, report, force=options.force)


def build_root(options: BuildOptions, report: Report) -> Path:
    """Make the root if it is stale, and all that it needs; return its path.

    By force the userland is made again, too: that is how newer packages get in.
    """
    artifacts = _All.plan(options)
    artifacts.check_host()
    if options.force:
        ensure(artifacts.userland, report, force=True)
    return ensure(artifacts.root, report, force=options.force)


def build_all(options: BuildOptions, report: Report) -> Artifacts:
    """Make all that is stale."""
    _All.plan(options).check_host()
    kernel = build_kernel(options, report)
    root = build_root(options, report)
    # The root's installer needed it: it is made already.
    ramdisk = build_ramdisk(dataclasses.replace(options, force=False), report)
    return Artifacts(kernel, ramdisk, root)


def list_status(options: BuildOptions) -> list[BuildStatus]:
    """Return what would be built, and why."""
    plan = _All.plan(options)
    rows = []
    for artifact in (plan.kernel, plan.userland, plan.ramdisk, plan.root):
        size = artifact.path.stat().st_blocks * 512 if artifact.path.exists() else 0
        stale = explain_stale(artifact) or ""
        rows.append(BuildStatus(artifact.name, str(artifact.path), stale, size))
    return rows
