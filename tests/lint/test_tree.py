"""The tree as a stranger gets it: nothing of this machine, every verb explained."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest

from ssi.cli.main import VERBS, make_parser
from ssi.host.packages import Need, parse_packages, read_packages
from ssi.host.paths import TOP
from support.tree import list_files, list_scripts


def places_of_this_machine() -> set[str]:
    """Return paths that mean something to nobody else."""
    folders = {TOP}
    if len(TOP.parts) > 2:
        folders.add(TOP.parent)
    if Path.home().parts[:2] == ("/", "home"):
        folders.add(Path.home())
    return {f"{folder}/" for folder in folders if folder != Path("/home")}


def read(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def test_no_path_of_this_machine_is_in_the_tree() -> None:
    places = places_of_this_machine()
    # Not as part of a longer path, which may be anybody's.
    pattern = re.compile("|".join(rf"(?<![\w./}}-]){re.escape(place)}" for place in places))
    found = [
        f"{path}: {match[0]}" for path in list_files() if (match := pattern.search(read(path)))
    ]
    assert not found


def test_what_begins_with_an_interpreter_is_executable() -> None:
    scripts = list_scripts("sh", "bash", "python3", "env")
    not_executable = [path for path in scripts if not os.access(path, os.X_OK)]
    assert not not_executable


def test_text_files_end_with_a_newline_and_have_no_trailing_blanks() -> None:
    bad = []
    for path in list_files():
        text = read(path)
        if path.suffix in {".py", ".md", ".c", ".h", ".txt", ".toml"} and text:
            blank_ends = any(line != line.rstrip() for line in text.split("\n"))
            if blank_ends or not text.endswith("\n"):
                bad.append(path)
    assert not bad


def verbs() -> dict[str, argparse.ArgumentParser]:
    for action in make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("no verbs")


def test_every_verb_is_listed_with_its_help() -> None:
    listing = make_parser().format_help()
    missing = [
        verb for verb in verbs() if not re.search(rf"^ +{verb}(\s|$)", listing, re.MULTILINE)
    ]
    assert not missing
    assert len(verbs()) == len(VERBS)


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_verb_explains_itself_and_its_options(verb: str) -> None:
    parser = verbs()[verb]
    assert parser.description
    options = [action for action in parser._actions if action.option_strings]
    unexplained = [action.option_strings for action in options if not action.help]
    assert not unexplained


def test_packages_are_listed_once_and_have_a_reason() -> None:
    packages = read_packages()
    names = [package.name for package in packages]
    assert len(names) == len(set(names))
    assert all(package.reason and package.sign for package in packages)
    assert {package.need for package in packages} == set(Need)


def test_list_of_packages_refuses_an_unknown_need() -> None:
    with pytest.raises(ValueError, match="whim"):
        parse_packages("cowsay | cowsay | whim | to say moo\n")
