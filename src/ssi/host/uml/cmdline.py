"""The command line of a virtual node: a pure function of its wishes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ssi.common.addresses import wire_argument


@dataclasses.dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a virtual node is made of."""

    node: int
    kernel: Path
    ramdisk: Path
    root: Path
    swap: Path
    memory_mib: int
    umid: str
    uml_dir: Path
    extra: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class NodeWires:
    """Descriptors that the UML process inherits."""

    console: tuple[int, ...]
    """Its input and its output."""
    line: int
    fence: int
    """Of the line by which the node asks for another one's death."""
    network: int
    notify: Path


def uml_argv(spec: NodeSpec, wires: NodeWires) -> list[str]:
    """Return the command that starts the node."""
    return [
        os.fspath(spec.kernel),
        f"mem={spec.memory_mib}M",
        # Unique for each run: with a stale name UML silently takes a random one.
        f"umid={spec.umid}",
        f"uml_dir={spec.uml_dir}",
        f"initrd={spec.ramdisk}",
        # c: several nodes write to it, each knows what the others do; DLM sees to that.
        f"ubd0c={spec.root}",
        f"ubd1={spec.swap}",
        wire_argument(spec.node, wires.network),
        "con=null", "con0=" + ",".join(f"fd:{end}" for end in wires.console),
        "ssl=null", f"ssl0=fd:{wires.line}", f"ssl1=fd:{wires.fence}",
        f"mconsole=notify:{wires.notify}",
        # Processes of the node run without ptrace, clearly faster.
        "seccomp=on",
        # A node that panics or reboots must end: its death is what the others wait for.
        "panic=-1", "noreboot",
        "quiet",
        f"ssi.node={spec.node}",
        *spec.extra,
    ]  # fmt: skip
