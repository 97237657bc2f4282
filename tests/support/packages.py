"""Debian's packages in a cluster's root, for tests of what the root itself does not have."""

from __future__ import annotations

import os

import pytest

from ssi.host.build.apt import read_acquire_options
from support.clusters import Cluster

# What the root leaves out of the packages, some of them take for given.
SCRIPT = """\
cat >/etc/apt/apt.conf.d/99test
mkdir -p /usr/share/man/man1
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update && apt-get -qq --yes --no-install-recommends install "$@" >/var/tmp/apt.log 2>&1
"""


def install_packages(cluster: Cluster, *names: str) -> None:
    """Install packages from where the root has its own.

    Without a way there CI fails, and a person's test is skipped.
    """
    settings = "\n".join(read_acquire_options()) + "\n"
    done = cluster.try_run(1, "bash", "-c", SCRIPT, "install", *names, given=settings.encode(),
                           within_s=600)  # fmt: skip
    if done.status == 0:
        return
    log = cluster.try_run(1, "tail", "-n5", "/var/tmp/apt.log")
    missing = f"{', '.join(names)} cannot be installed in the nodes:\n{done.err}{log.out}"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
