"""The userland: a distribution's files in one tar, made without being root."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from pathlib import Path

from ssi.common.errors import BuildError, UsageError
from ssi.host.build.apt import Mirror, find_mirror, find_security, read_acquire_options
from ssi.host.build.command import Command, require_tools, run
from ssi.host.build.digest import digest_files, digest_text
from ssi.host.build.options import BuildOptions, Report
from ssi.host.build.plan import Artifact, staged
from ssi.host.build.recipe import Recipe, read_recipe

WORD = re.compile(r"[a-z0-9][a-z0-9.+:-]*", re.ASCII)


def _sources(recipe: Recipe, suite: str, work: Path) -> list[str]:
    """Return lines of a sources.list."""
    mirror = find_mirror()
    lines = [(mirror, suite)]
    if suite in recipe.stable:
        lines.append((mirror, f"{suite}-updates"))
        if security := find_security():
            lines.append((security, f"{suite}-security"))
    return [_source(*line, work) for line in lines]


def _source(mirror: Mirror, suite: str, work: Path) -> str:
    key_file = work / f"{suite}.asc"
    key_file.write_text(mirror.key)
    return mirror.line(suite, key_file)


def find_mode() -> str:
    """Return how mmdebstrap is to become root in its tree; raise BuildError if it cannot."""
    if os.getuid() == 0:
        return "root"
    require_tools("newuidmap", "unshare")
    names = (f"{getpass.getuser()}:", f"{os.getuid()}:")
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = path.read_text().splitlines() if path.exists() else []
        if not any(line.startswith(names) for line in lines):
            user = getpass.getuser()
            raise BuildError(
                f"{user} has no range of numbers in {path}, which the root's owners need",
                hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
    _check_user_namespaces()
    return "unshare"


def _check_user_namespaces() -> None:
    """Raise BuildError if this system lets normal users have no user namespace."""
    tried = subprocess.run(["unshare", "--user", "true"], check=False, capture_output=True)
    if tried.returncode:
        raise BuildError(
            "this system allows no user namespaces, which a root is made in",
            hint="sudo sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
            "kernel.apparmor_restrict_unprivileged_userns=0 (those there are), or build as root",
        )


def mmdebstrap_argv(
    recipe: Recipe, suite: str, packages: list[str], mode: str, settings: list[str], target: Path
) -> list[str]:
    """Return the command that makes the userland `target`; sources.list comes on its input."""
    options = [
        f"--mode={mode}", "--variant=minbase", "--format=tar",
        f"--include={','.join(packages)}",
        # Recommended packages would bring documentation and daemons.
        "--aptopt=Apt::Install-Recommends \"false\"",
    ]  # fmt: skip
    options += [f"--aptopt={line}" for line in settings]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.leave_out]
    options += [f"--dpkgopt=path-include={pattern}" for pattern in recipe.keep]
    if recipe.customize.exists():
        options.append(f"--customize-hook={recipe.customize}")
    return ["mmdebstrap", *options, suite, os.fspath(target)]


PHASES = (
    "apt-get update", "downloading packages", "extracting archives", "installing essential",
    "installing remaining", "running --customize-hook", "cleaning package lists",
    "creating tarball", "success in",
)  # fmt: skip
"""What mmdebstrap prints on its way."""


def _bootstrap(
    recipe: Recipe, suite: str, packages: list[str], work: Path, target: Path, report: Report
) -> None:
    log = work / "bootstrap.log"
    done = 0

    def hear(line: str) -> None:
        nonlocal done
        if any(phase in line for phase in PHASES):
            done += 1
            report.progress(min(done, len(PHASES)), len(PHASES))

    if recipe.bootstrap.exists():
        run(Command([recipe.bootstrap, suite, target, *packages], log=log), hear)
        return
    require_tools("mmdebstrap", "apt-get", "tar")
    argv = mmdebstrap_argv(recipe, suite, packages, find_mode(), read_acquire_options(), target)
    sources = _sources(recipe, suite, work)
    try:
        # SOURCE_DATE_EPOCH: two builds from the same packages are the same, files' times too.
        run(Command([*argv, *sources], log=log, env={"SOURCE_DATE_EPOCH": "0"}), hear)
    except BuildError as error:
        raise BuildError(
            f"the userland of {suite} could not be made: {error}", hint=error.hint
        ) from error


def userland_artifact(options: BuildOptions) -> Artifact:
    """Return the tar with the userland as `options` want it."""
    recipe = read_recipe(options.recipe)
    for word in (options.suite, *options.include):
        if not WORD.fullmatch(word):
            raise UsageError(f"{word!r} is no name of a suite or package")
    packages = recipe.packages(options.include)
    programs = [path for path in (recipe.bootstrap, recipe.customize) if path.exists()]
    inputs = {
        **digest_files(programs, recipe.folder),
        **digest_files([Path(__file__)], Path(__file__).parent),
        "suite": options.suite,
        "packages": " ".join(packages),
        "leave_out": " ".join((*recipe.leave_out, "-", *recipe.keep)),
        "recipe": recipe.name,
    }
    variant = digest_text(f"{recipe.folder} {' '.join(sorted(set(options.include)))}")[:8]

    def build(work: Path, report: Report) -> Path:
        report.step(f"install the packages of {recipe.name} {options.suite}")
        target = work / "userland.tar"
        with staged(target) as partial:
            # Its name tells mmdebstrap nothing: the format is said.
            _bootstrap(recipe, options.suite, packages, work, partial, report)
        return target

    file = f"userland/{recipe.name}-{options.suite}-{variant}.tar"
    return Artifact(f"userland of {options.suite}", file, inputs, build)
