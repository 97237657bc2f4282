"""What a cluster was started with, and where its things are."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from ssi.common.errors import SsiError, UsageError
from ssi.host.paths import runtime_dir, state_dir

FIRST_ID = 10001
LAST_ID = 19999


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A cluster's wishes. Kept in its folder for as long as that exists."""

    id: int
    kernel: Path
    ramdisk: Path
    root_source: str
    """What its root was copied from: path, size and time of change."""
    memory_mib: int
    swap_mib: int
    token_ms: int
    publish: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return it as from_json reads it."""
        return json.dumps(dataclasses.asdict(self), default=os.fspath, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ClusterSpec:
        """Return the spec in `text`, a file of ours."""
        fields: dict[str, Any] = json.loads(text)
        for key in ("kernel", "ramdisk"):
            fields[key] = Path(fields[key])
        fields["publish"] = tuple(fields["publish"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterPlace:
    """The folders of one cluster."""

    id: int

    @property
    def state(self) -> Path:
        """Kept between stop and start."""
        return state_dir() / str(self.id)

    @property
    def runtime(self) -> Path:
        """Gone with the cluster."""
        return runtime_dir() / str(self.id)

    @property
    def spec(self) -> Path:
        return self.state / "cluster.json"

    @property
    def root(self) -> Path:
        return self.state / "root.img"

    @property
    def key(self) -> Path:
        """The cluster's secret; see ssi.host.cluster.key."""
        return self.state / "key"

    @property
    def lock(self) -> Path:
        """Held by whoever works on the cluster, above all its running supervisor."""
        return self.state / "lock"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.runtime / "control"

    @property
    def groups(self) -> Path:
        """Process groups of the nodes, a line each, for `ssi clean`."""
        return self.runtime / "groups"

    def swap(self, node: int) -> Path:
        return self.state / f"swap_{node}"

    def console_log(self, node: int) -> Path:
        return self.logs / f"node{node}.console"

    def uml_log(self, node: int) -> Path:
        """What the UML process itself prints, before there is a console and when it fails."""
        return self.logs / f"node{node}.uml"

    def node_log(self, node: int) -> Path:
        """What the node's daemons say; kept when it dies."""
        return self.logs / f"node{node}.log"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisor.log"


def parse_cluster(text: str) -> int:
    """Return the cluster number in `text`, or raise UsageError."""
    if not re.fullmatch("[0-9]{1,9}", text) or not FIRST_ID <= int(text) <= LAST_ID:
        raise UsageError(
            f"{text!r} is not a cluster number",
            hint=f"clusters are numbered from {FIRST_ID}; `ssi ls` shows the running ones",
        )
    return int(text)


def _list_places(folder: Path) -> list[ClusterPlace]:
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return [ClusterPlace(int(n)) for n in sorted(names) if n.isdigit() and len(n) == 5]


def list_running() -> list[ClusterPlace]:
    """Return the clusters whose runtime folder exists: running, or left by a crash."""
    return _list_places(runtime_dir())


def list_kept() -> list[ClusterPlace]:
    """Return the clusters that have a root of their own, running or not."""
    return _list_places(state_dir())


def choose_running(cluster: int | None) -> ClusterPlace:
    """Return the cluster meant: the one given, else the only one there is."""
    running = list_running()
    if cluster is not None:
        place = ClusterPlace(cluster)
        if place not in running:
            raise SsiError(
                f"cluster {cluster} is not running", hint="`ssi ls` shows the running clusters"
            )
        return place
    if not running:
        raise SsiError("no cluster is running", hint="start one with `ssi start`")
    if len(running) > 1:
        ids = ", ".join(str(place.id) for place in running)
        raise UsageError(f"several clusters are running: {ids}", hint="say which one you mean")
    return running[0]
