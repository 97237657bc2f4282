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
    "usr/bin/where_pid", "usr/bin/fastnode", "usr/bin/migrate",
    "usr/sbin/halt", "usr/sbin/poweroff", "usr/sbin/reboot", "usr/sbin/runlevel",
    "usr/sbin/shutdown", "usr/sbin/telinit",
)  # fmt: skip

FIFO_KEEPER = "usr/lib/ssi/fifokeeper"

DEVICE_KEEPER = "usr/lib/ssi/devicekeeper"
IPC_KEEPER = "usr/lib/ssi/ipckeeper"

QUEUE_KEEPER = "usr/lib/ssi/queuekeeper"

RELAY = "usr/lib/ssi/relay"

UNIX_KEEPER = "usr/lib/ssi/unixkeeper"

PYTHON_PACKAGE = "usr/lib/python3/dist-packages/ssi"
"""Where Debian's Python looks for modules of any version of its."""


HOMECOMING = "usr/lib/ssi/homecoming"

PAGER = "usr/lib/ssi/pager"

RESTART = "usr/bin/restart"

SET_USER_ID = frozenset({HOMECOMING, RESTART})
"""Products that run as root, whoever starts them."""

CRIU = "usr/lib/ssi/criu"
"""All that is in this folder CRIU takes for its plugins."""

SHARED = ("-shared", "-fPIC", "-Wl,-z,defs", "-Wl,-z,relro,-z,now")


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
    Product(FIFO_KEEPER, "fifokeeper.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(DEVICE_KEEPER, "devicekeeper.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(IPC_KEEPER, "ipckeeper.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(QUEUE_KEEPER, "queuekeeper.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(RELAY, "relay.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(UNIX_KEEPER, "unixkeeper.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(HOMECOMING, "criu/homecoming.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product("usr/lib/ssi/enter", "criu/enter.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(PAGER, "criu/pager.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product("usr/bin/checkpoint", "checkpoint.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(RESTART, "restart.c", ("-static", "-Wl,-z,relro,-z,now")),
    Product(f"{CRIU}/ssi.so", "criu/plugin.c", SHARED),
    Product(f"{CRIU}.preload.so", "criu/preload.c", SHARED),
    # In /usr/lib, where every loader looks without having been told by ldconfig.
    Product(
        "usr/lib/libssi.so.1", "libssi/libssi.c",
        (*SHARED, "-Wl,-soname,libssi.so.1",
         f"-Wl,--version-script={paths.NATIVE / 'libssi/libssi.map'}"),
    ),
    # Static as well: with -lssi, as a person links it, it would need the C library of this host.
    Product(
        "root/dbdemo/dbdemo", "dbdemo/dbdemo.c",
        ("-static", f"-I{paths.NATIVE / 'libssi'}", str(paths.NATIVE / "libssi/libssi.c")),
    ),
)  # fmt: skip

SOURCES = {"usr/include/ssi.h": "libssi/ssi.h", "root/dbdemo/dbdemo.c": "dbdemo/dbdemo.c"}
"""What is in the root as it is here."""

INCLUDED = (
    "local.h",
    "children.h",
    "ghost.h",
    "launcher.h",
    "filter.h",
    "saved.h",
    "keeper.h",
    "buffer.h",
    "messages.h",
    "fifokeeper.h",
    "devicekeeper.h",
    "ipckeeper.h",
    "queuekeeper.h",
    "relay.h",
    "unixkeeper.h",
    "unixfiles.h",
    "libssi/libssi.map",
    "criu/asking.h",
    "criu/become.h",
    "criu/kept.h",
    "criu/loose.h",
    "criu/move.h",
    "criu/pages.h",
    "criu/sent.h",
    "criu/traced.h",
    "criu/words.h",
)
"""What is used besides."""

GENERATED = {
    "usr/include/sys/cluster.h": """\
/* The name this header had with libcluster; OpenSSI's programs know ssi_migrate as migrate. */
#include <ssi.h>

#ifdef __cplusplus
extern "C"
#endif
int migrate(int node);
""",
}

CRIU_WITHOUT = f"{CRIU}.without"
"""Libraries that CRIU is loaded without in a move: by their names it finds our
preloaded code, which is loaded anyway. They and what they need are 15 of its 22 libraries."""

LINKS = {
    "usr/lib/libssi.so": "libssi.so.1",
    **{
        f"{CRIU_WITHOUT}/{name}": f"../{Path(CRIU).name}.preload.so"
        for name in ("libgnutls.so.30", "libnftables.so.1", "libnet.so.1")
    },
    "usr/bin/fast": Path(ONNODE).name,
    **{name: os.path.relpath(COMMAND, Path(name).parent) for name in COMMAND_NAMES},
    PYTHON_PACKAGE: "../../ssi/src/ssi",
}


FOLDERS = (
    "usr/include/sys", "usr/lib/python3", "usr/lib/python3/dist-packages", "root/dbdemo",
    CRIU_WITHOUT,
)  # fmt: skip
"""That a root may lack which has no compiler, or no Python modules but the standard library's."""


def list_sources() -> list[Path]:
    """Return all files that the products are made from."""
    names = (*(product.source for product in PRODUCTS), *SOURCES.values(), *INCLUDED)
    return [paths.NATIVE / name for name in names]


def compile_products(folder: Path, more: tuple[str, ...] = ()) -> dict[str, Path]:
    """Compile into `folder`, with `more` flags; return the files by their names in the root."""
    files = {name: paths.NATIVE / source for name, source in SOURCES.items()}
    for product in PRODUCTS:
        target = folder / Path(product.name).name
        flags = (*product.flags, *more)
        native.compile_program(paths.NATIVE / product.source, target, flags)
        files[product.name] = target
    return files
