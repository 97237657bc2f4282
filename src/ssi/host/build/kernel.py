"""The node's kernel: User-Mode Linux, configured by our fragments, from patched sources."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ssi.host.build import kconfig
from ssi.host.build.command import Command, find_tool, require_tools, run
from ssi.host.build.digest import digest_files
from ssi.host.build.options import BuildOptions, Report
from ssi.host.build.plan import Artifact
from ssi.host.build.source import prepare_tree, read_kernel_version, source_inputs
from ssi.host.paths import TOP

TOOLS = ("make", "gcc", "ld", "ar", "strip", "flex", "bison", "bc", "perl", "patch")

OBJECTS = 930
"""How many objects a whole build compiles, until one has been counted."""

TIMESTAMP = "Thu Jan  1 00:00:00 UTC 1970"
"""In the kernel's banner: two builds of the same are the same, and ccache hits."""

NOT_KERNEL = frozenset({"scripts", "tools", "Documentation"})
"""Folders whose objects are for the build itself."""

STEP = re.compile(r"  (CC|AS) +\S+\.o")


def _make(tree: Path, *words: str) -> Command:
    compilers = []
    if find_tool("ccache"):
        compilers = ["CC=ccache gcc", "HOSTCC=ccache gcc"]
    jobs = f"-j{os.cpu_count() or 1}"
    return Command(
        ["make", "ARCH=um", jobs, *compilers, *words], cwd=tree,
        env={
            "KBUILD_BUILD_TIMESTAMP": TIMESTAMP, "KBUILD_BUILD_USER": "ssi",
            "KBUILD_BUILD_HOST": "ssi", "KBUILD_BUILD_VERSION": "1", "LOCALVERSION": "",
            # Options for the kernel's build come from here alone.
            "MAKEFLAGS": "", "KCFLAGS": "", "CROSS_COMPILE": "", "KBUILD_OUTPUT": "",
        },
        log=tree / f"ssi-{words[-1]}.log",
    )  # fmt: skip


def _configure(tree: Path) -> None:
    wanted = kconfig.merge_fragments(kconfig.list_fragments())
    fragment = tree / "ssi.config"
    fragment.write_text(kconfig.render_config(wanted))
    config = tree / ".config"
    before = config.read_bytes() if config.exists() else b""
    times = config.stat() if config.exists() else None
    run(_make(tree, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"))
    kconfig.check_survival(wanted, config)
    if times and config.read_bytes() == before:
        # make goes by times: what has not changed must not look new.
        os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))


def _compile(tree: Path, work: Path, report: Report) -> None:
    counted = work / "objects"
    total = int(counted.read_text()) if counted.exists() else OBJECTS
    missing = max(1, total - _count_objects(tree))
    done = 0

    def hear(line: str) -> None:
        nonlocal done
        if STEP.match(line):
            done += 1
            report.progress(done, max(missing, done))

    run(_make(tree, "linux"), hear)
    counted.write_text(str(max(1, _count_objects(tree))))


def _count_objects(tree: Path) -> int:
    """Return how many objects of the kernel are compiled already."""
    count = 0
    for base, folders, names in os.walk(tree):
        if base == os.fspath(tree):
            folders[:] = [name for name in folders if name not in NOT_KERNEL]
        count += sum(name.endswith(".o") for name in names)
    return count


def _strip(linux: Path, target: Path) -> Path:
    run(Command(["strip", "-o", target, linux]))
    target.chmod(0o755)
    return target


def kernel_artifact(options: BuildOptions) -> Artifact:
    """Return the kernel as `options` want it."""

    def build(work: Path, report: Report) -> Path:
        require_tools(*TOOLS)
        tree = prepare_tree(work, options.source, report)
        report.step("configure the kernel")
        _configure(tree)
        report.step(f"compile Linux {read_kernel_version(tree)}")
        _compile(tree, work, report)
        return _strip(tree / "linux", work / "linux")

    own = Path(__file__).parent
    inputs = {
        **digest_files(kconfig.list_fragments(), TOP),
        **source_inputs(options.source),
        **digest_files([own / "kernel.py", own / "kconfig.py", own / "source.py"], TOP),
        "compiler": _read_compiler(),
    }
    return Artifact("kernel", "kernel/linux", inputs, build)


def _read_compiler() -> str:
    gcc = find_tool("gcc")
    if not gcc:
        return "none"
    # ccache's own folder in the PATH must not count as another compiler.
    real = shutil.which("gcc", path="/usr/bin:/bin") or gcc
    return run(Command([real, "-dumpfullversion", "-dumpmachine"])).replace("\n", " ").strip()
