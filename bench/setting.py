"""What the benches share: `ssi` as its user runs it, clusters of their own, medians.

A bench takes a cluster number nobody uses and leaves nothing behind, also when it is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(1, os.fspath(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(2, os.fspath(Path(__file__).resolve().parents[1] / "tests"))

from ssi.host.build.artifacts import find_artifacts
from ssi.host.cluster.spec import ClusterPlace
from ssi.host.paths import TOP
from support.clusters import Cluster, Images, Ssi, started
from support.person import Person

NO_WINDOWS = ("--console", "none")


class Ourselves(Person):
    """Whoever runs the bench, with the folders he has."""

    def __init__(self) -> None:
        super().__init__(Path.home(), TOP, None)

    @property
    def environment(self) -> dict[str, str]:
        """Ours, with this checkout's `ssi`."""
        return {**os.environ, "PATH": f"{TOP}/bin:{os.environ['PATH']}"}


def find_images() -> Images:
    """Return what `ssi build all` made; ends the bench when that was not done."""
    built = find_artifacts()
    if not (built.kernel and built.ramdisk and built.root):
        raise SystemExit("kernel, ramdisk or root is missing: run `ssi build all` first")
    return Images(built.kernel, built.ramdisk, built.root)


@contextlib.contextmanager
def running(count: int, *words: str) -> Iterator[Cluster]:
    """Run a cluster of `count` nodes of one's own; afterwards nothing of it is left.

    `words` are further ones for `ssi start`.
    """
    # Asked to end, we end what we started, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    person = Ourselves()
    try:
        with started(Ssi(person, find_images()), count, *NO_WINDOWS, *words) as cluster:
            yield cluster
    finally:
        person.settle()


def place_of(cluster: Cluster) -> ClusterPlace:
    """Return where the cluster's things are."""
    return ClusterPlace(cluster.number)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: the speed of the machine is not in it."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def print_row(name: str, figures: Iterable[str]) -> None:
    """Print a line of a table."""
    print(f"{name:34}" + "".join(f"{figure:>12}" for figure in figures))


def say(text: str) -> None:
    """Tell how far the bench is."""
    print(text, file=sys.stderr)
