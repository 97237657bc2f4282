"""The shared root: a disk image with the userland and our own files on GFS2."""

from __future__ import annotations

from pathlib import Path

from ssi.host import native
from ssi.host.build import compiled, overlay
from ssi.host.build.digest import digest_file, digest_files, digest_text
from ssi.host.build.installer import Installation, install
from ssi.host.build.options import BuildOptions, Report
from ssi.host.build.plan import Artifact
from ssi.host.build.recipe import read_recipe
from ssi.host.disk import make_blank
from ssi.host.paths import NATIVE

SIZE = 8 << 30
"""What nodes see; the image takes what is written to it."""

OWN = ("root.py", "installer.py", "overlay.py", "compiled.py")

PHASES = {"format": 1, "unpack": 2, "write": 3}


def root_artifact(
    options: BuildOptions, kernel: Artifact, ramdisk: Artifact, userland: Artifact
) -> Artifact:
    """Return the root as `options` want it."""
    recipe = read_recipe(options.recipe)
    own = Path(__file__).parent
    inputs = {
        **{name: digest_file(path) for path, name in overlay.list_overlay(recipe)},
        **{name: digest_text(text) for name, text in overlay.generated_files().items()},
        **digest_files(compiled.list_sources(), NATIVE),
        **{name: digest_file(own / name) for name in OWN},
        "native.py": digest_file(Path(native.__file__)),
    }

    def build(work: Path, report: Report) -> Path:
        report.step("install the root")
        files = work / "overlay.tar"
        overlay.write_overlay(recipe, files)
        disk = work / "root.img"
        disk.unlink(missing_ok=True)
        make_blank(disk, SIZE)
        wishes = Installation(kernel.path, ramdisk.path, disk, userland.path, files)
        try:
            install(
                wishes, work / "console.log",
                lambda phase: report.progress(PHASES.get(phase, 0), len(PHASES) + 1),
            )  # fmt: skip
        except BaseException:
            disk.unlink()
            raise
        finally:
            files.unlink()
        return disk

    return Artifact(
        "root", f"root/{options.suite}/root.img", inputs, build, (kernel, ramdisk, userland),
        final=True,
    )  # fmt: skip
