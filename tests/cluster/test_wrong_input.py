"""Wrong input: one line that says what, perhaps one with the remedy, a status, and nothing left."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ssi.host.disk import copy_disk
from support.clusters import Cluster, Result, Ssi, started

SUPERBLOCK = 64 * 1024
GFS2 = b"\x01\x16\x19\x70"
ZSTD = b"\x28\xb5\x2f\xfd"
WITHIN_S = 150


def run(
    ssi: Ssi, words: Sequence[str], *, before: Sequence[str] = (), env: Mapping[str, str]
) -> Result:
    """Run ``ssi WORDS``, as an argument of the command `before` if there is one."""
    done = subprocess.run(
        [*ssi.person.prefix, *before, "ssi", *words], env={**ssi.person.environment, **env},
        cwd=ssi.person.home, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=WITHIN_S, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def things(ssi: Ssi) -> set[Path]:
    """Return what clusters of the person have in his folders, but for the logs to look at."""
    home = ssi.person.home
    places = [*home.glob("state/ssi/*"), *home.glob("state/ssi/*/*"), *home.glob("run/ssi/*")]
    return {path for path in places if "failed-boot" not in path.parts}


def kernels_and_commands(ssi: Ssi) -> set[int]:
    """Return the person's processes, but for those that run a process of a node that is up."""

    def is_inside(pid: int, words: str) -> bool:
        # Just forked it has its kernel's command line still; that leads its process group.
        try:
            # It may have unmapped its words; a kernel or a command of the host never has.
            return (
                not words
                or "uml-userspace" in words
                or ("uml_dir=" in words and os.getpgid(pid) != pid)
            )
        except ProcessLookupError:
            return True

    return {pid for pid, words in ssi.person.processes().items() if not is_inside(pid, words)}


def refuse(
    ssi: Ssi, *words: str, before: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> str:
    """Run ``ssi WORDS``, which must be refused as it should be; return what it said."""
    processes, had = kernels_and_commands(ssi), things(ssi)
    result = run(ssi, words, before=before, env=env or {})
    assert result.status not in {0, 130}, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert lines, result
    assert len(lines) <= 2, result.err
    assert all(line.startswith("ssi: ") for line in lines), result.err
    assert not lines[0].startswith("ssi: hint: "), result.err
    assert all(line.startswith("ssi: hint: ") for line in lines[1:]), result.err
    assert kernels_and_commands(ssi) <= processes
    assert things(ssi) == had
    return result.err


def elsewhere(ssi: Ssi, tmp: str) -> dict[str, str]:
    """Return the environment in which the person has no cluster."""
    run_dir = ssi.person.home / f"run-{tmp}"
    run_dir.mkdir(mode=0o700, exist_ok=True)
    if ssi.person.uid is not None:
        os.chown(run_dir, ssi.person.uid, ssi.person.uid)
    return {"XDG_RUNTIME_DIR": str(run_dir)}


# -- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["0", "128", "x", "-1", "1.5", "", "³", "9" * 5000])
@pytest.mark.parametrize("verb", ["start", "add", "rm", "exec", "console"])
def test_a_node_that_cannot_be(ssi: Ssi, verb: str, node: str) -> None:
    words = {"exec": ["--", "--", "true"]}.get(verb, ["--"])
    said = refuse(ssi, verb, words[0], node, *words[1:])
    assert "not a node number" in said or "not from 1 to 127" in said
    assert "127" in said


@pytest.mark.parametrize("words", [
    ["start", "-m", "1"], ["start", "-s", "x"], ["start", "--token", "1"],
    ["start", "-c", "5"], ["stop", "5"], ["stop", "x"], ["stop", "-t", "x"], ["add", "10001"],
    ["exec", "1"], ["exec", "-c", "x", "1", "--", "true"], ["net", "nonsense"],
    ["start", "-p", "x"],
])  # fmt: skip
def test_words_that_mean_nothing(ssi: Ssi, words: list[str]) -> None:
    refuse(ssi, *words)


@pytest.mark.parametrize("words", [
    ["stop"], ["add", "1"], ["rm", "1"], ["exec", "1", "--", "true"], ["console", "1"], ["net"],
])  # fmt: skip
def test_no_cluster(ssi: Ssi, words: list[str]) -> None:
    said = refuse(ssi, *words, env=elsewhere(ssi, "none"))
    assert said == "ssi: no cluster is running\nssi: hint: start one with `ssi start`\n"


@pytest.mark.parametrize("words", [
    ["stop", "19999"], ["add", "19999", "1"], ["rm", "19999", "1"],
    ["exec", "-c", "19999", "1", "--", "true"], ["console", "-c", "19999", "1"],
])  # fmt: skip
def test_an_unknown_cluster(ssi: Ssi, words: list[str]) -> None:
    assert "19999 is not running" in refuse(ssi, *words)


def test_several_clusters_and_none_named(trio: Cluster) -> None:
    ssi = trio.ssi
    with started(ssi, 1) as other:
        for words in (["stop"], ["add", "2"], ["rm", "1"], ["exec", "1", "--", "true"]):
            said = refuse(ssi, *words)
            assert str(trio.number) in said
            assert str(other.number) in said


def test_a_node_that_is_not_up(trio: Cluster) -> None:
    number = str(trio.number)
    for words in (["rm", number, "9"], ["exec", "-c", number, "9", "--", "true"],
                  ["console", "-c", number, "9"]):  # fmt: skip
        said = refuse(trio.ssi, *words)
        assert f"ssi add {number} 9" in said
    assert set(trio.nodes()) == {1, 2, 3}


def test_a_second_start_of_the_same_cluster(trio: Cluster) -> None:
    number = str(trio.number)
    said = refuse(trio.ssi, "start", "3", "-c", number, *trio.ssi.images.options)
    assert f"cluster {number} is running already" in said
    assert set(trio.nodes()) == {1, 2, 3}


# -- images ------------------------------------------------------------------------------------


def start_with(ssi: Ssi, **images: Path) -> str:
    """Start with other images, which must be refused; return what was said."""
    chosen = {"kernel": ssi.images.kernel, "ramdisk": ssi.images.ramdisk, "root": ssi.images.root}
    chosen |= images
    options = ["-k", chosen["kernel"], "-i", chosen["ramdisk"], "-r", chosen["root"]]
    return refuse(ssi, "start", "2", "--new", *map(str, options))


def put(folder: Path, data: bytes, mode: int = 0o755) -> Path:
    """Make a file that the person can read, and nobody would take for an image of ours."""
    path = folder / f"odd-{len(list(folder.iterdir()))}"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("what", ["kernel", "ramdisk", "root"])
def test_an_image_that_is_missing(ssi: Ssi, what: str) -> None:
    assert "/nowhere: No such file" in start_with(ssi, **{what: Path("/nowhere")})
    assert "Is a directory" in start_with(ssi, **{what: Path("/tmp")})


@pytest.mark.parametrize("what", ["kernel", "ramdisk", "root"])
def test_an_image_that_is_something_else(ssi: Ssi, what: str) -> None:
    for path in (Path("/etc/passwd"), Path("/dev/null"), Path("/bin/sh")):
        if (what, path) != ("kernel", Path("/bin/sh")):
            assert f"{path} is not a {what}" in start_with(ssi, **{what: path})


def test_a_kernel_that_may_not_be_executed(ssi: Ssi) -> None:
    kernel = put(ssi.images.kernel.parent, b"\x7fELF", 0o644)
    assert "may not be executed" in start_with(ssi, kernel=kernel)


@pytest.mark.parametrize("kernel", ["/bin/true", "/bin/false", "torn"])
def test_a_kernel_that_ends_at_once(ssi: Ssi, kernel: str) -> None:
    path = Path(kernel)
    if kernel == "torn":
        path = put(ssi.images.kernel.parent, ssi.images.kernel.read_bytes()[:100_000])
    # They start side by side, so any of them may be the first to die.
    assert re.search("node[123] died while it booted", start_with(ssi, kernel=path))


def test_a_ramdisk_that_is_corrupt(ssi: Ssi) -> None:
    folder = ssi.images.ramdisk.parent
    noise = random.Random(1).randbytes(1_000_000)
    assert "node" in start_with(ssi, ramdisk=put(folder, ZSTD + noise))
    whole = ssi.images.ramdisk.read_bytes()
    assert "node" in start_with(ssi, ramdisk=put(folder, whole[: len(whole) // 2]))


def test_a_root_that_is_corrupt(ssi: Ssi) -> None:
    root = ssi.images.root.parent / "odd-root"
    copy_disk(ssi.images.root, root)
    root.chmod(0o755)
    with root.open("r+b") as file:
        # Everything after the superblock up to where most of the metadata is.
        file.seek(SUPERBLOCK + 4096)
        file.write(random.Random(2).randbytes(64 << 20))
    assert "mount" in start_with(ssi, root=root)
    with root.open("r+b") as file:
        file.seek(SUPERBLOCK)
        file.write(bytes(4096))
    assert "is not a root" in start_with(ssi, root=root)
    root.unlink()


def test_a_root_that_ends_early(ssi: Ssi) -> None:
    root = put(ssi.images.root.parent, bytes(SUPERBLOCK) + GFS2 + bytes(100_000))
    assert "mount" in start_with(ssi, root=root)


# -- the host ----------------------------------------------------------------------------------


def test_a_full_disk(ssi: Ssi) -> None:
    small = ssi.person.home / "small"
    small.mkdir(mode=0o755, exist_ok=True)
    script = (
        'mount -t tmpfs -o size=20m none "$XDG_STATE_HOME" || exit 99\n'
        '"$@"; status=$?; find "$XDG_STATE_HOME" -mindepth 2; exit $status'
    )
    before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    words = ("start", "2", *ssi.images.options)
    env = {"XDG_STATE_HOME": str(small), **elsewhere(ssi, "small")}
    if run(ssi, ["--help"], before=before, env=env).status == 99:
        pytest.skip("no user namespace in which a small disk could be mounted: allow them")
    said = refuse(ssi, *words, before=before, env=env)
    assert "no room left on the disk" in said


def test_a_state_folder_that_may_not_be_written(ssi: Ssi) -> None:
    closed = ssi.person.home / "closed"
    closed.mkdir(exist_ok=True)
    closed.chmod(0o555)
    said = refuse(
        ssi, "start", "1", *ssi.images.options,
        env={"XDG_STATE_HOME": str(closed), **elsewhere(ssi, "closed")},
    )  # fmt: skip
    assert str(closed) in said


def test_a_runtime_folder_too_deep_for_a_socket(ssi: Ssi) -> None:
    """Then another folder is taken, and it works."""
    deep = ssi.person.home / ("deep" * 20)
    deep.mkdir(mode=0o700, exist_ok=True)
    if ssi.person.uid is not None:
        os.chown(deep, ssi.person.uid, ssi.person.uid)
    env = {"XDG_RUNTIME_DIR": str(deep), "XDG_STATE_HOME": str(ssi.person.home / "state")}
    before = kernels_and_commands(ssi)
    result = run(ssi, ["start", "1", "--new", "--json", *ssi.images.options], env=env)
    assert result.status == 0, result
    assert run(ssi, ["exec", "1", "--", "hostname"], env=env).out == "node1\n"
    assert run(ssi, ["stop"], env=env).status == 0
    assert run(ssi, ["clean", "--kept", result.out.split('"id": ')[1][:5]], env=env).status == 0
    assert kernels_and_commands(ssi) <= before
    base = Path(f"/tmp/ssi-{os.getuid() if ssi.person.uid is None else ssi.person.uid}")
    assert not list(base.iterdir())
    base.rmdir()


def test_a_port_that_is_in_use(ssi: Ssi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = refuse(ssi, "start", "1", "--new", "-p", f"{port}:22", *ssi.images.options)
    assert str(port) in said
    assert "in use" in said


def test_no_user_namespaces_for_building_a_root(ssi: Ssi) -> None:
    script = 'echo 0 >/proc/sys/user/max_user_namespaces || exit 99\nexec "$@"'
    # Not as root in there: root may do without. The capability is for the limit only.
    before = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", script, "sh"]
    if run(ssi, ["--help"], before=before, env={}).status == 99:
        pytest.skip("no user namespace in which they could be forbidden: allow them")
    said = refuse(ssi, "build", "root", before=before)
    assert "user namespaces" in said
