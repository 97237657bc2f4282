"""A recipe: a folder that says how a distribution becomes the nodes' userland."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path

from ssi.common.errors import UsageError
from ssi.host.paths import IMAGE

DEFAULT = IMAGE / "rootfs/debian"

LISTS = ("stable", "cluster", "comfort", "leave_out", "keep")


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe's folder and what its recipe.toml says."""

    folder: Path
    name: str
    stable: tuple[str, ...]
    cluster: tuple[str, ...]
    comfort: tuple[str, ...]
    leave_out: tuple[str, ...]
    keep: tuple[str, ...]

    @property
    def bootstrap(self) -> Path:
        """The program that makes the userland; where there is none, mmdebstrap does."""
        return self.folder / "bootstrap"

    @property
    def customize(self) -> Path:
        """The program that completes it."""
        return self.folder / "customize"

    @property
    def tree(self) -> Path:
        """The files that are put over it."""
        return self.folder / "tree"

    def packages(self, include: tuple[str, ...]) -> list[str]:
        """Return the packages to install, with those a person wants besides."""
        return sorted({*self.cluster, *self.comfort, *include})


def read_recipe(folder: Path | None) -> Recipe:
    """Read the recipe in `folder`; None is Debian's."""
    folder = (folder or DEFAULT).resolve()
    path = folder / "recipe.toml"
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", hint=f"a recipe is a folder like {DEFAULT}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    if unknown := table.keys() - {"name", *LISTS}:
        raise UsageError(f"{path}: unknown key {min(unknown)}")
    for key in LISTS:
        words = table.get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"{path}: {key} is not a list of words")
    name = str(table.get("name", folder.name))
    lists = {key: tuple(table.get(key, ())) for key in LISTS}
    for program in (folder / "bootstrap", folder / "customize"):
        if program.exists() and not os.access(program, os.X_OK):
            raise UsageError(f"{program} is not executable", hint=f"chmod +x {program}")
    return Recipe(folder, name, **lists)
