"""Clusters for the tests: one of three nodes that gentle tests share, others for who needs them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from ssi.host.build.artifacts import find_artifacts
from ssi.host.paths import TOP
from support.clusters import Cluster, Images, Ssi, copy_images, started
from support.person import Person, normal_user

LOOK_S = 20
BLOCKED = "dmesg -c >/dev/null; echo w >/proc/sysrq-trigger; dmesg"

DOUBTED = pytest.StashKey[bool]()
"""Whether a test has failed since the clusters that run were last looked at."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cluster")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    """Keep the logs of all clusters when a test fails, and say where."""
    report = yield
    if report.failed:
        item.session.stash[DOUBTED] = True
    person = getattr(item, "funcargs", {}).get("person")
    if report.failed and isinstance(person, Person):
        kept = TOP / "build/test-logs" / f"{item.name}-{report.when}"
        for logs in person.home.glob("state/ssi/*/log"):
            shutil.copytree(logs, kept / logs.parent.name, dirs_exist_ok=True)
        if (failed := person.home / "state/ssi/failed-boot").exists():
            shutil.copytree(failed, kept / "failed-boot", dirs_exist_ok=True)
        keep_blocked(item, kept)
        report.sections.append(("logs", f"kept in {kept}"))
    return report


def keep_blocked(item: pytest.Item, kept: Path) -> None:
    """Keep what waits in the kernel of each node, and where; a hang is seen by it."""
    ssi = getattr(item, "funcargs", {}).get("ssi")
    kept.mkdir(parents=True, exist_ok=True)
    if not isinstance(ssi, Ssi):
        return
    for cluster in ssi.running:
        for node in range(1, cluster.count + 1):
            words = ["-c", str(cluster.number), "--ramdisk", str(node), "--", "sh", "-c"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = ssi.try_("exec", *words, BLOCKED, within_s=LOOK_S)
                (kept / f"blocked-{cluster.number}-{node}").write_text(said.out + said.err)


@pytest.fixture(scope="session")
def person() -> Iterator[Person]:
    """A normal user; at the end no process of his may be left."""
    # Not pytest's own folder: that is closed to other users, and too deep for a socket's path.
    with tempfile.TemporaryDirectory(prefix="ssi-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with normal_user(Path(folder) / "home") as person:
            yield person
            left = person.wait_alone()
            assert not left, f"left behind: {left}"


@pytest.fixture(autouse=True)
def settled(person: Person) -> Iterator[None]:
    """No test leaves a command running."""
    yield
    person.settle()


@pytest.fixture(scope="session")
def images(person: Person) -> Images:
    """The images that `ssi build all` made, where the person can read them."""
    built = find_artifacts()
    assert built.kernel, "no kernel: run `ssi build all`"
    assert built.ramdisk, "no ramdisk: run `ssi build all`"
    assert built.root, "no root: run `ssi build all`"
    return copy_images(
        Images(built.kernel, built.ramdisk, built.root), person.home.parent / "images"
    )


@pytest.fixture(scope="session")
def ssi(person: Person, images: Images) -> Ssi:
    """The command `ssi`, as the person runs it."""
    return Ssi(person, images)


@pytest.fixture(autouse=True)
def whole(ssi: Ssi, request: pytest.FixtureRequest) -> None:
    """After a test that failed all clusters are whole again, or the next would fail with it."""
    if request.session.stash.get(DOUBTED, False):
        request.session.stash[DOUBTED] = False
        for cluster in ssi.running:
            cluster.restore(*range(1, cluster.count + 1))


@pytest.fixture(scope="session")
def shared(ssi: Ssi) -> Iterator[Cluster]:
    """A cluster of nodes 1 to 3, booted once."""
    with started(ssi, 3) as cluster:
        yield cluster


@pytest.fixture
def trio(shared: Cluster) -> Cluster:
    """The shared cluster with nodes 1 to 3 up. A test may crash nodes; it leaves no files."""
    shared.restore(1, 2, 3)
    return shared
