"""What this machine lacks: each requirement once, with a remedy where it is not met."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import signal
from pathlib import Path

import pytest

from ssi.host import doctor, probes
from ssi.host.doctor import State, examine_host
from ssi.host.packages import LIST, Need, Package, parse_packages


def test_every_requirement_is_named_once_and_has_a_remedy() -> None:
    checks = list(examine_host())
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    for check in checks:
        assert bool(check.remedy) == (check.state is not State.OK), check
        assert check.found, check
        assert "\n" not in check.found + check.remedy


def test_a_machine_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    check = next(iter(examine_host()))
    assert (check.name, check.state) == ("processor", State.MISSING)
    assert "aarch64" in check.found


def test_too_little_of_anything_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NODE_MIB", 1 << 30)
    monkeypatch.setattr(doctor, "BUILD_MIB", 1 << 40)
    monkeypatch.setattr(doctor, "KEEP_MIB", 1 << 40)
    missing = {check.name for check in doctor._check_room() if check.state is State.MISSING}
    assert missing == {"room for memory", "memory", "room for builds", "room for clusters"}


def test_low_limits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 10))
    assert [check.state for check in doctor._check_limits()] == [State.MISSING] * 2
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, -1))
    assert [check.state for check in doctor._check_limits()] == [State.OK] * 2


@pytest.mark.parametrize(("length", "state"), [(20, State.OK), (90, State.MISSING)])
def test_long_paths_of_sockets_are_told(
    monkeypatch: pytest.MonkeyPatch, length: int, state: State
) -> None:
    monkeypatch.setattr(doctor, "runtime_dir", lambda: Path("/" + "x" * length))
    assert doctor._check_socket_paths().state is state


@pytest.mark.parametrize(
    ("need", "state"),
    [(Need.RUN, State.MISSING), (Need.BUILD, State.MISSING), (Need.TEST, State.OPTIONAL),
     (Need.EXTRA, State.OPTIONAL), (Need.OFFER, State.OPTIONAL)],
)  # fmt: skip
@pytest.mark.parametrize("sign", ["no-such-program-anywhere", "/no/such/file*"])
def test_a_missing_package_is_told(need: Need, state: State, sign: str) -> None:
    check = doctor._check_package(Package("cowsay", sign, need, "to say moo"))
    assert check.state is state
    assert "to say moo" in check.found
    assert check.remedy == "apt-get install cowsay"


def test_subordinate_numbers_are_counted_by_name_and_number(tmp_path: Path) -> None:
    user = pwd.getpwuid(os.getuid())
    table = tmp_path / "subuid"
    assert doctor._count_ids(table, user) == 0
    table.write_text(f"{user.pw_name}:100000:65536\nsomebody:1:9\nbad line\n{user.pw_uid}:7:4\n")
    assert doctor._count_ids(table, user) == 65540


def kill_oneself() -> int:
    signal.raise_signal(signal.SIGKILL)
    return 0


def test_probes_say_why() -> None:
    assert probes._try_in_child(lambda: 0) is None
    assert probes._try_in_child(lambda: errno.EPERM) == os.strerror(errno.EPERM)
    assert probes._try_in_child(kill_oneself) == "killed by signal 9"
    assert probes.try_command("true") is None
    assert probes.try_command("false") == "status 1"
    assert probes.try_command("sh", "-c", "echo one >&2; echo two >&2; exit 3") == "two"
    assert "no-such-program" in (probes.try_command("no-such-program") or "")
    assert probes.try_imports("json", "os") is None
    assert "no_such_module" in (probes.try_imports("no_such_module") or "")
    assert probes.try_executable_memory(Path("/proc/no-such-folder"))


def test_our_list_says_what_a_package_is_for() -> None:
    packages = {package.name: package for package in parse_packages(LIST.read_text())}
    assert packages["mmdebstrap"].need is Need.BUILD
    assert packages["gcc"].find()
