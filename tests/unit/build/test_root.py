"""The root: recipes, our own files in it, and the installer's words."""

from __future__ import annotations

import getpass
import posixpath
import tarfile
from pathlib import Path

import pytest

from ssi.common.errors import BuildError, UsageError
from ssi.host.build import compiled, installer, overlay
from ssi.host.build.installer import Installation, Outcome, install, installer_argv
from ssi.host.build.options import BuildOptions
from ssi.host.build.plan import Artifact
from ssi.host.build.ramdisk import MANIFEST, Manifest, check_kernel_version
from ssi.host.build.recipe import read_recipe
from ssi.host.build.root import root_artifact
from ssi.host.build.userland import mmdebstrap_argv, userland_artifact
from ssi.host.uml.notify import Kind, Notification


def test_overlay_is_the_same_each_time(tmp_path: Path) -> None:
    recipe = read_recipe(None)
    paths = [tmp_path / "1.tar", tmp_path / "2.tar"]
    for path in paths:
        overlay.write_overlay(recipe, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with tarfile.open(paths[0]) as tar:
        members = {member.name: member for member in tar}
        hosts = tar.extractfile("./etc/hosts")
        assert hosts
        assert b"192.168.50.127 node127\n" in hosts.read()
    assert members["./usr/sbin/cluster_mkinitrd"].mode == 0o755
    assert members["./usr/lib/ssi/command"].mode == 0o755
    for link, goal in {
        "./usr/bin/cluster": "../lib/ssi/command",
        "./usr/lib/libssi.so": "libssi.so.1",
        "./usr/lib/python3/dist-packages/ssi": "../../ssi/src/ssi",
    }.items():
        assert members[link].linkname == goal
        assert posixpath.normpath(posixpath.join(posixpath.dirname(link), goal)) in {
            posixpath.normpath(name) for name in members
        }
    assert {member.uid for member in members.values()} == {0}
    assert getpass.getuser() == "root" or getpass.getuser() not in str(members)


def test_the_root_gets_what_its_ramdisk_builder_imports() -> None:
    names = {path.name for path in overlay.list_software()}
    assert {"ramdisk.py", "cpio.py", "elf.py", "bytecode.py", "paths.py", "manifest.toml"} <= names
    assert {"api.py", "frames.py"} <= names, "so does who imports ssi.api"
    assert not {"supervisor.py", "start.py"} & names, "the host's part has no place there"


def test_the_root_is_made_from_all_native_sources_of_its_own() -> None:
    names = {path.name for path in compiled.list_sources()}
    assert {"command.c", "local.h", "libssi.c", "ssi.h", "libssi.map"} == names
    inputs = find_root_inputs()
    assert {"command.c", "local.h", "libssi/libssi.c", "compiled.py", "native.py"} <= inputs


def find_root_inputs() -> set[str]:
    nothing = Artifact("nothing", "nothing", {}, lambda work, _: work)
    return set(root_artifact(BuildOptions(), nothing, nothing, nothing).inputs)


def test_recipe_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.toml").write_text("wrong = 1\n")
    with pytest.raises(UsageError, match="unknown key wrong"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.toml").write_text("cluster = 'x'\n")
    with pytest.raises(UsageError, match="cluster is not a list"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.toml").write_text("cluster = ['x']\n")
    (tmp_path / "bootstrap").touch()
    with pytest.raises(UsageError, match="not executable"):
        read_recipe(tmp_path)


def test_mmdebstrap_command() -> None:
    recipe = read_recipe(None)
    argv = mmdebstrap_argv(recipe, "trixie", ["a", "b"], "unshare", ["X 1;"], Path("/t"))
    assert argv[0] == "mmdebstrap"
    assert argv[-2:] == ["trixie", "/t"]
    assert {"--mode=unshare", "--include=a,b", "--aptopt=X 1;"} <= set(argv)


@pytest.mark.parametrize("word", ["--help", "a b", "", "A", "../x"])
def test_names_that_could_be_options(word: str) -> None:
    with pytest.raises(UsageError):
        userland_artifact(BuildOptions(suite=word))
    with pytest.raises(UsageError):
        userland_artifact(BuildOptions(include=(word,)))


def test_variants_have_files_of_their_own() -> None:
    plain, more = (userland_artifact(BuildOptions(include=i)) for i in ((), ("gcc",)))
    assert plain.path != more.path
    assert userland_artifact(BuildOptions(include=("gcc", "gcc"))).path == more.path


def outcome_of(*texts: str) -> Outcome:
    outcome = Outcome(lambda _: None)
    for text in texts:
        outcome.take(Notification(Kind.USER, text))
    return outcome


def test_only_the_installers_own_word_is_success() -> None:
    assert outcome_of("ssi-install: format", "ssi-install: installed").done
    assert not outcome_of("installed", "ssi-install: format").done
    assert outcome_of("ssi-install: failed: making it").trouble == "failed: making it"
    panic = Outcome(lambda _: None)
    panic.take(Notification(Kind.PANIC, "oops"))
    assert "oops" in panic.trouble


def test_installer_reads_tars_only() -> None:
    here = Path("/x")
    argv = installer_argv(Installation(here, here, here, here, here), Path("/run"))
    assert "ubd1r=/x" in argv
    assert not any("hostfs" in word for word in argv)


def test_manifest() -> None:
    assert "corosync" in Manifest.from_toml(MANIFEST.read_text()).programs
    with pytest.raises(UsageError, match="unknown key other"):
        Manifest.from_toml("other = 1\n" + MANIFEST.read_text())


def test_kernel_versions() -> None:
    assert check_kernel_version("7.2.13-ssi") == "7.2.13-ssi"
    for text in ("", "x", "7", "7.2\n", "7.2;rm", "-h"):
        with pytest.raises(UsageError):
            check_kernel_version(text)


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        ("echo no memory; exit 1", "ended without a word"),
        ("echo no memory; sleep 600 & exit 3", "ended without a word"),
    ],
)
def test_an_installer_that_dies(tmp_path: Path, script: str, trouble: str) -> None:
    kernel, disk, log = tmp_path / "kernel", tmp_path / "disk", tmp_path / "log"
    kernel.write_text(f"#!/bin/sh\n{script}\n")
    kernel.chmod(0o755)
    disk.touch()
    with pytest.raises(BuildError, match=trouble) as caught:
        install(Installation(kernel, disk, disk, disk, disk), log, lambda _: None)
    assert "no memory" in str(caught.value), "the end of the console's output"
    assert str(log) in (caught.value.hint or "")


def test_an_installer_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, disk = tmp_path / "kernel", tmp_path / "disk"
    kernel.write_text("#!/bin/sh\nsleep 600 & sleep 600\n")
    kernel.chmod(0o755)
    disk.touch()
    monkeypatch.setattr(installer, "DEADLINE_S", 0.2)
    with pytest.raises(BuildError, match="not ready within"):
        install(Installation(kernel, disk, disk, disk, disk), tmp_path / "log", lambda _: None)
