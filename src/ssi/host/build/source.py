"""The kernel's sources: chosen, fetched, unpacked and patched, each step kept once it is done."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from ssi.common.errors import BuildError, UsageError
from ssi.host.build.apt import Apt, Package, find_mirror, unpack_deb
from ssi.host.build.command import Command, require_tools, run
from ssi.host.build.digest import digest_file, digest_files, digest_text, digest_tree_state
from ssi.host.build.options import Report
from ssi.host.build.plan import remove, staged
from ssi.host.paths import IMAGE, TOP

SERIES = IMAGE / "kernel/series.toml"
PATCHES = IMAGE / "kernel/patches"
FUZZ = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """Which series of Linux are wanted, and where they are looked for."""

    oldest: tuple[int, ...]
    tested: tuple[str, ...]
    suites: tuple[str, ...]

    @classmethod
    def from_toml(cls, text: str) -> Series:
        """Read series.toml."""
        table = tomllib.loads(text)
        if unknown := table.keys() - {"oldest", "tested", "suites"}:
            raise UsageError(f"series.toml: unknown key {min(unknown)}")
        return cls(parse_version(table["oldest"]), tuple(table["tested"]), tuple(table["suites"]))


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version such as 7.2."""
    return tuple(int(number) for number in text.split("."))


def choose_package(names: Iterable[str], series: Series) -> tuple[str, bool]:
    """Return the fitting linux-source package of `names`, and whether its series is tested."""
    versions = {
        name.removeprefix("linux-source-"): name
        for name in names
        if re.fullmatch(r"linux-source-\d+\.\d+", name)
    }
    for version in series.tested:
        if version in versions:
            return versions[version], True
    newest = max(versions, key=parse_version, default="0")
    if parse_version(newest) < series.oldest:
        wanted = ".".join(map(str, series.oldest))
        raise BuildError(
            f"no linux-source of {wanted} or newer in {', '.join(series.suites)}",
            hint="give one: ssi build kernel --source linux-7.2.tar.xz (or a tree)",
        )
    return versions[newest], False


def read_patches() -> list[Path]:
    """Return the patches of the series file, in their order."""
    lines = (PATCHES / "series").read_text().splitlines()
    names = (line.partition("#")[0].strip() for line in lines)
    return [PATCHES / name for name in names if name]


def source_inputs(source: Path | None) -> dict[str, str]:
    """Return the digests of what the patched tree is made from."""
    inputs = digest_files([PATCHES / "series", *read_patches()], TOP)
    if source is None:
        return {**inputs, **digest_files([SERIES], TOP), "source": "linux-source"}
    if source.is_dir():
        return {**inputs, "source": f"{source.resolve()} {digest_tree_state(source)}"}
    if not source.is_file():
        raise UsageError(f"--source {source}: no such tarball or folder")
    return {**inputs, "source": digest_file(source)}


def _fetch_package(work: Path, report: Report) -> Path:
    """Return the tarball in Debian's package of the chosen series."""
    require_tools("dpkg-deb", "xz", "tar")
    series = Series.from_toml(SERIES.read_text())
    apt = Apt(work / "apt", find_mirror())
    report.step("look for kernel sources")
    apt.update(series.suites, report)
    name, tested = choose_package(apt.names("linux-source-"), series)
    package = apt.newest(name)
    if not tested:
        report.note(f"none of the tested series is there: trying {package.name} {package.version}")
    return _open_package(apt, package, work, report)


def _open_package(apt: Apt, package: Package, work: Path, report: Report) -> Path:
    folder = work / f"{package.name}-{package.version}"
    if not folder.exists():
        report.step(f"download {package.name} {package.version} ({package.size >> 20} MiB)")
        deb = apt.download(package, work)
        unpack_deb(deb, folder)
        deb.unlink()
        for other in work.glob("linux-source-*"):
            if other != folder:  # an older version: its room is needed
                remove(other)
    [tarball] = folder.glob("usr/src/linux-source-*.tar.*")
    return tarball


def _unpack(tarball: Path, target: Path) -> None:
    require_tools("tar", *(["xz"] if tarball.suffix == ".xz" else []))
    run(Command(["tar", "-xf", tarball, "-C", target, "--strip-components=1", "--no-same-owner"]))


def _copy(tree: Path, target: Path) -> None:
    run(Command(["cp", "-a", "--reflink=auto", f"{tree}/.", target]))
    run(Command(["make", "ARCH=um", "mrproper"], cwd=target))


def _apply_patches(tree: Path) -> None:
    require_tools("patch")
    for patch in read_patches():
        try:
            run(Command(["patch", "-p1", f"--fuzz={FUZZ}", "--no-backup-if-mismatch", "--forward",
                         "--batch", "-i", patch], cwd=tree))  # fmt: skip
        except BuildError as error:
            raise BuildError(
                f"image/kernel/patches/{patch.name} does not apply to this kernel:\n{error}",
                hint="use a series of image/kernel/series.toml, or refresh the patch",
            ) from error


def read_kernel_version(tree: Path) -> str:
    """Return the version in the Makefile of `tree`."""
    text = (tree / "Makefile").read_text()
    numbers = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL)\s*=\s*(\d+)$", text, re.M))
    return ".".join(numbers.get(key, "0") for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


def prepare_tree(work: Path, source: Path | None, report: Report) -> Path:
    """Return a patched tree in `work`; objects of an earlier build of the same tree are in it."""
    origin = source or _fetch_package(work, report)
    inputs = source_inputs(source) | {"origin": os.fspath(origin)}
    key = digest_text("\n".join(f"{name}={inputs[name]}" for name in sorted(inputs)))
    tree, mark = work / "tree", work / "tree.key"
    if tree.exists() and mark.exists() and mark.read_text() == key:
        return tree
    report.step("unpack and patch the kernel sources")
    mark.unlink(missing_ok=True)
    with staged(tree) as partial:
        partial.mkdir()
        if origin.is_dir():
            _copy(origin, partial)
        else:
            _unpack(origin, partial)
        _apply_patches(partial)
    mark.write_text(key)
    return tree
