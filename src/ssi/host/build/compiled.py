"""What of the root is compiled here: the commands, which are one program, and libssi."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ssi.host import native, paths

COMMAND = "usr/lib/ssi/command"

ONNODE = "usr/bin/onnode"

LAUNCHER = "usr/lib/ssi/launcher"
"""Run from the root, as nothing can be started without the root."""

COMMAND_NAMES = (
    "usr/bin/cluster", "usr/bin/clustername", "usr/bin/clusternode_avail",
    "usr/bin/clusternode_getstate", "usr/bin/clusternode_num", "usr/bin/clusternode_setstate",
    "usr/bin/clusternode_shutdown", "usr/bin/clreg", "usr/bin/onall",
    "usr/bin/where_pid", "usr/bin/fastnode",
    "usr/sbin/halt", "usr/sbin/poweroff", "usr/sbin/reboot", "usr/sbin/runlevel",
    "usr/sbin/shutdown", "usr/sbin/telinit",
)  # fmt: skip

PYTHON_PACKAGE = "usr/lib/python3/dist-packages/ssi"
"""Where Debian's Python looks for modules of any version of its."""


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A file of the root that is compiled from `source`."""

    name: str
    source: str
    flags: tuple[str, ...]


PRODUCTS = (
    # Static: a loader and libraries to map would take most of its time, and it suits any root.
    Product(COMMAND, "command.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(ONNODE, "onnode.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(LAUNCHER, "launcher.c", ("-static", "-Wl,-z,relro,-z,now")),
    # In /usr/lib, where every loader looks without having been told by ldconfig.
    Product(
        "usr/lib/libssi.so.1", "libssi/libssi.c",
        ("-shared", "-fPIC", "-Wl,-soname,libssi.so.1", "-Wl,-z,defs", "-Wl,-z,relro,-z,now"),
    ),
)  # fmt: skip

HEADERS = {"usr/include/ssi.h": "libssi/ssi.h"}

INCLUDED = ("local.h", "ghost.h", "launcher.h", "filter.h", "libssi/libssi.map")
"""What is used besides."""

GENERATED = {
    "usr/include/sys/cluster.h": "/* The name this header had with libcluster. */\n"
    "#include <ssi.h>\n",
}

LINKS = {
    "usr/lib/libssi.so": "libssi.so.1",
    "usr/bin/fast": Path(ONNODE).name,
    **{name: os.path.relpath(COMMAND, Path(name).parent) for name in COMMAND_NAMES},
    PYTHON_PACKAGE: "../../ssi/src/ssi",
}


FOLDERS = ("usr/include/sys", "usr/lib/python3", "usr/lib/python3/dist-packages")
"""That a root may lack which has no compiler, or no Python modules but the standard library's."""


def list_sources() -> list[Path]:
    """Return all files that the products are made from."""
    names = (*(product.source for product in PRODUCTS), *HEADERS.values(), *INCLUDED)
    return [paths.NATIVE / name for name in names]


def compile_products(folder: Path, more: tuple[str, ...] = ()) -> dict[str, Path]:
    """Compile into `folder`, with `more` flags; return the files by their names in the root."""
    files = {name: paths.NATIVE / source for name, source in HEADERS.items()}
    for product in PRODUCTS:
        target = folder / Path(product.name).name
        flags = (*product.flags, *more)
        if "-shared" in flags:
            flags += (f"-Wl,--version-script={paths.NATIVE / 'libssi/libssi.map'}",)
        native.compile_program(paths.NATIVE / product.source, target, flags)
        files[product.name] = target
    return files
