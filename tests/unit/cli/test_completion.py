"""Completion, in real shells."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pexpect
import pytest

from ssi.cli import completion
from ssi.cli.main import make_parser
from ssi.host.paths import TOP
from support.tree import find_tool

ASK = """
source {script}
ssi() {{ :; }}
COMP_WORDS=({words}) COMP_CWORD={at}
_ssi 2>&1
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "ssi.bash"
    path.write_text(completion.render_script("bash"))
    return path


def complete(script: Path, line: str, *, names: dict[str, str] | None = None) -> set[str]:
    """Return what bash offers at the end of `line`, with programs that print `names`."""
    words = line.split(" ")
    fake = script.parent / "ssi"
    cases = "".join(f"{kind}) echo {said} ;;\n" for kind, said in (names or {}).items())
    fake.write_text(f"#!/bin/sh\ncase $2 in\n{cases}esac\n")
    fake.chmod(0o755)
    words[0] = words[0].replace("ssi", str(fake), 1)
    quoted = " ".join(f"'{word}'" for word in words)
    text = ASK.format(script=script, words=quoted, at=len(words) - 1)
    bash = find_tool("bash", "bash")
    done = subprocess.run([bash, "--norc", "-c", text], check=True, capture_output=True, text=True,
                          cwd=script.parent)  # fmt: skip
    assert not done.stderr
    return set(done.stdout.split())


def test_verbs(bash_script: Path) -> None:
    verbs = complete(bash_script, "ssi ")
    assert {"start", "add", "rm", "stop", "ls", "console", "exec", "clean", "doctor"} <= verbs
    assert complete(bash_script, "ssi st") == {"start", "stop"}


def test_options(bash_script: Path) -> None:
    assert {"--kernel", "--root", "--json"} <= complete(bash_script, "ssi start --")
    assert complete(bash_script, "ssi start --console ") >= {"auto", "none", "xterm", "tmux"}


@pytest.mark.parametrize("line", ["ssi rm ", "ssi console ", "ssi exec ", "ssi-rm ", "ssi rm 1 "])
def test_running_nodes(bash_script: Path, line: str) -> None:
    assert complete(bash_script, line, names={"nodes": "1 2 12"}) == {"1", "2", "12"}


def test_names_are_cut_to_what_is_typed(bash_script: Path) -> None:
    assert complete(bash_script, "ssi rm 1", names={"nodes": "1 2 12"}) == {"1", "12"}


def test_absent_nodes_and_clusters(bash_script: Path) -> None:
    names = {"absent": "3", "clusters": "10001", "kept": "10002"}
    assert complete(bash_script, "ssi add ", names=names) == {"3"}
    assert complete(bash_script, "ssi stop ", names=names) == {"10001"}
    assert complete(bash_script, "ssi exec -c ", names=names) == {"10001"}
    assert complete(bash_script, "ssi clean --kept ", names=names) == {"10002"}


def test_the_old_names_are_their_verbs(bash_script: Path) -> None:
    assert "--fresh" in complete(bash_script, "ssi-start --")


def test_files(bash_script: Path) -> None:
    (bash_script.parent / "linux").touch()
    assert "linux" in complete(bash_script, "ssi start -k lin")


@pytest.mark.parametrize("line", ["ssi exec 1 -- ", "ssi exec 1 -- l", "ssi exec 1 -- ls --"])
def test_stops_after_two_dashes(bash_script: Path, line: str) -> None:
    (bash_script.parent / "linux").touch()
    assert complete(bash_script, line, names={"nodes": "1"}) == set()


def test_a_person_presses_tab(bash_script: Path) -> None:
    shell = pexpect.spawn(
        find_tool("bash", "bash"), ["--norc", "--noprofile", "-i"], encoding="utf-8", timeout=20,
        env={"PS1": "> ", "TERM": "dumb", "PATH": f"{TOP}/bin:/usr/bin:/bin",
             "HOME": str(bash_script.parent)},
    )  # fmt: skip
    try:
        shell.sendline(f"source {bash_script}; bind 'set bell-style none'; echo rea''dy")
        shell.expect("ready")
        shell.send("ssi com\t")
        shell.expect("ssi completion ")
        shell.send("ba\t")
        shell.expect("bash ")
    finally:
        shell.close(force=True)


def test_a_person_presses_tab_in_zsh(tmp_path: Path) -> None:
    (tmp_path / "_ssi").write_text(completion.render_script("zsh"))
    fake = tmp_path / "ssi"
    fake.write_text("#!/bin/sh\n[ \"$2\" = nodes ] && printf '17\\n28\\n'\n")
    fake.chmod(0o755)
    shell = pexpect.spawn(
        find_tool("zsh", "zsh"), ["-f", "-i"], encoding="utf-8", timeout=20,
        env={"PS1": "> ", "TERM": "dumb", "PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    try:
        shell.sendline(f"unsetopt beep; fpath=({tmp_path} $fpath); autoload -U compinit")
        shell.sendline("compinit -u -D; echo rea''dy")
        shell.expect("ready")
        shell.send("ssi comp\t")
        shell.expect("ssi completion ")
        shell.send("\x15ssi rm \t")
        shell.expect("17 +28")
    finally:
        shell.close(force=True)


def test_table_names_arguments_that_there_are() -> None:
    parser = make_parser()
    completion._mark_completed(parser)
    verbs = parser._subparsers._group_actions[0].choices if parser._subparsers else None
    assert isinstance(verbs, dict)
    arguments = [argument for verb in verbs.values() for argument in verb._actions]
    marked = [argument for argument in arguments if hasattr(argument, "complete")]
    assert len(marked) == len(completion.COMPLETED)
