"""Compiling small C programs on demand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ssi.common.errors import BuildError
from ssi.host import native, paths


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "NATIVE", tmp_path)
    (tmp_path / "seven.c").write_text("int main(void) { return 7; }\n")
    return tmp_path


@pytest.mark.parametrize("source", sorted(paths.NATIVE.glob("*.c")), ids=lambda path: path.name)
def test_our_programs_give_no_warning(source: Path, tmp_path: Path) -> None:
    argv = [*native.compile_argv(source, tmp_path / "out"), *native.WARNINGS]
    subprocess.run(argv, check=True)


def test_compiles_once_and_again_when_the_source_changes(folders: Path) -> None:
    first = native.program("seven")
    stamp = first.stat().st_mtime_ns
    assert subprocess.run([first], check=False).returncode == 7
    assert native.program("seven") == first
    assert first.stat().st_mtime_ns == stamp
    (folders / "seven.c").write_text("int main(void) { return 8; }\n")
    assert subprocess.run([native.program("seven")], check=False).returncode == 8
    again = native.program("seven")
    assert {path.name for path in first.parent.iterdir()} == {first.name, again.name}


def test_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BuildError, match="no C compiler") as caught:
        native.program("seven")
    assert "gcc" in (caught.value.hint or "")


def test_reports_the_first_error_and_leaves_nothing(folders: Path) -> None:
    (folders / "seven.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(BuildError, match=r"seven\.c does not compile: .*nothing"):
        native.program("seven")
    assert list((folders / "cache/ssi/native").iterdir()) == []


def test_a_missing_source_is_an_expected_error() -> None:
    with pytest.raises(BuildError, match=r"eight\.c"):
        native.program("eight")
