"""`ssi completion`: what makes a shell complete verbs, options, nodes and clusters.

Load it with `eval "$(ssi completion bash)"`.
"""

from __future__ import annotations

import argparse
import contextlib

import shtab

from ssi.cli.output import print_line
from ssi.common.errors import SsiError
from ssi.host.cluster.client import ask
from ssi.host.cluster.spec import ClusterPlace, list_kept, list_running

SHELLS = ("bash", "zsh")
NAMES = ("nodes", "absent", "clusters", "kept")

ANSWERS_WITHIN_S = 1.0
"""A person waits for the tab key."""

NODES, ABSENT, CLUSTERS, KEPT = (
    {"bash": f"_ssi_{names}", "zsh": f"_ssi_{names}"} for names in NAMES
)

COMPLETED = {
    ("start", "root"): shtab.FILE, ("start", "kernel"): shtab.FILE,
    ("start", "initrd"): shtab.FILE, ("start", "cluster"): KEPT,
    ("add", "words"): ABSENT, ("rm", "words"): NODES, ("stop", "cluster"): CLUSTERS,
    ("console", "cluster"): CLUSTERS, ("console", "node"): NODES,
    ("exec", "cluster"): CLUSTERS, ("exec", "node"): NODES,
    ("ps", "cluster"): CLUSTERS, ("kill", "cluster"): CLUSTERS,
    ("migrate", "cluster"): CLUSTERS, ("migrate", "node"): NODES,
    ("logs", "cluster"): KEPT, ("logs", "nodes"): NODES,
    ("net", "cluster"): CLUSTERS, ("clean", "kept"): KEPT,
}  # fmt: skip
"""What completes an argument, by verb and the name argparse keeps it under."""

BASH = """
_ssi() {
  local i ssi=${COMP_WORDS[0]}
  for ((i = 1; i < COMP_CWORD; i++)); do
    # What follows is a command for the node, of which this host knows nothing.
    if [[ ${COMP_WORDS[i]} == -- ]]; then return 0; fi
  done
  case ${ssi##*/} in
    ssi-*)
      COMP_WORDS=(ssi "${ssi##*/ssi-}" "${COMP_WORDS[@]:1}")
      COMP_CWORD=$((COMP_CWORD + 1))
      ssi=${ssi%-*}
      ;;
  esac
  _shtab_ssi
}
complete -F _ssi ssi ssi-start ssi-add ssi-rm ssi-stop ssi-ls
"""

BASH_NAMES = """\
_ssi_NAMES() { compgen -W "$("${ssi:-ssi}" completion NAMES 2>/dev/null)" -- "$1"; }
"""

ZSH_NAMES = """\
_ssi_NAMES() { compadd -- ${(f)"$(ssi completion NAMES 2>/dev/null)"}; }
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "completion", help="print a shell's completion script", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "what", metavar="|".join(SHELLS), choices=SHELLS + NAMES,
        help="the shell (the scripts themselves ask for: " + ", ".join(NAMES) + ")",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a script, or the names that one asks for."""
    if args.what in SHELLS:
        print_line(render_script(args.what))
    else:
        for name in _list_names(args.what):
            print_line(str(name))
    return 0


def render_script(shell: str) -> str:
    """Return the completion script for `shell`."""
    from ssi.cli.main import make_parser  # noqa: PLC0415 - it imports this module as a verb

    parser = make_parser()
    _mark_completed(parser)
    one = BASH_NAMES if shell == "bash" else ZSH_NAMES
    preamble = "".join(one.replace("NAMES", names) for names in NAMES)
    script = str(shtab.complete(parser, shell, preamble=preamble))
    if shell == "bash":
        # Its last line completes file names where there is nothing to complete.
        script = script[: script.rindex("complete -o bashdefault")] + BASH
    return script


def _mark_completed(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to its subparsers
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            continue
        for verb, subparser in action.choices.items():
            for argument in subparser._actions:  # noqa: SLF001 - the same
                if completed := COMPLETED.get((verb, argument.dest)):
                    argument.complete = completed


def _running_nodes() -> set[int]:
    nodes: set[int] = set()
    for place in list_running():
        with contextlib.suppress(SsiError):
            answer = ask(place, {"do": "status"}, within_s=ANSWERS_WITHIN_S)
            nodes |= {int(node["node"]) for node in answer["nodes"]}
    return nodes


def _known_nodes(place: ClusterPlace) -> set[int]:
    """Return the nodes that were up at some time: they have a swap disk."""
    return {int(swap.name.removeprefix("swap_")) for swap in place.state.glob("swap_*")}


def _list_names(names: str) -> list[int]:
    match names:
        case "nodes":
            return sorted(_running_nodes())
        case "absent":
            known = {node for place in list_running() for node in _known_nodes(place)}
            return sorted(known - _running_nodes())
        case "clusters":
            return [place.id for place in list_running()]
        case _:
            return [place.id for place in list_kept()]
