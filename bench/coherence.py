#!/usr/bin/env python3
"""What two processes do on shared files: on two nodes, and beside it both on one node.

Both sides take turns; the ratio is that of a round. After each game the files are checked: each
move that a player counted must be in them, or the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from bench.setting import median_ratio, print_row, running, say

from support.clusters import Cluster

FOLDER = "/root/bench"
TWO, ONE = (1, 2), (1, 1)
"""The nodes of both players."""

SET_UP = f"""
rm -rf {FOLDER}; mkdir {FOLDER}; cd {FOLDER}
head -c 8 /dev/zero >number; : >records; : >ball-0; cat >players.py; sync -f .
"""


class Result(NamedTuple):
    """How a game went."""

    rate: float
    """Moves per second."""
    wrong: str


class Check(NamedTuple):
    """How a game's result is read, and what is wrong with it, given the players' moves."""

    read: tuple[str, ...]
    judge: Callable[[str, list[int]], str]


def _judge_sum(said: str, moves: list[int]) -> str:
    number = int.from_bytes(bytes.fromhex(said), sys.byteorder)
    return "" if number == sum(moves) else f"{sum(moves)} moves, but the number is {number}"


def _judge_ball(said: str, moves: list[int]) -> str:
    right = said.split() == [f"ball-{sum(moves) % 2}"] and moves[0] - moves[1] in {0, 1}
    return "" if right else f"moves {moves}, but there is {said.split()}"


def _judge_records(said: str, moves: list[int]) -> str:
    wanted = Counter(f"{me} {number:09}" for me in (0, 1) for number in range(moves[me]))
    found = Counter(said.splitlines())
    lost, strange = (wanted - found).total(), (found - wanted).total()
    return f"of {sum(moves)} records, {lost} lost, {strange} strange" if lost or strange else ""


NUMBER = Check(("python3", "-c", f"print(open('{FOLDER}/number', 'rb').read().hex())"), _judge_sum)


class Game(NamedTuple):
    """What is played, and how it is checked."""

    name: str
    check: Check


BALL = Check(("sh", "-c", f"cd {FOLDER}; ls -d ball-*"), _judge_ball)

GAMES = {
    "fcntl": Game("fcntl lock, contended", NUMBER),
    "flock": Game("flock, contended", NUMBER),
    "mmap": Game("mmap MAP_SHARED, alternating", NUMBER),
    "data": Game("read and write, alternating", NUMBER),
    "rename": Game("rename, alternating", BALL),
    "append": Game("O_APPEND", Check(("cat", f"{FOLDER}/records"), _judge_records)),
}


def _end(player: subprocess.Popen[bytes]) -> int:
    out, err = player.communicate(b"go\n", timeout=120)
    if player.returncode != 0:
        raise SystemExit(f"a player failed: {err.decode(errors='replace')}")
    return int(out)


def play(cluster: Cluster, game: str, nodes: tuple[int, int], seconds: float) -> list[int]:
    """Let two players play; return the moves of each."""
    players = []
    for me, node in enumerate(nodes):
        argv = [
            "ssi", "exec", "-c", str(cluster.number), str(node), "--",
            "python3", f"{FOLDER}/players.py", game, str(me), str(seconds),
        ]  # fmt: skip
        pipe = subprocess.PIPE
        players.append(cluster.ssi.person.start(argv, stdin=pipe, stdout=pipe, stderr=pipe))
    for player in players:
        assert player.stdout  # it was started with a pipe
        if player.stdout.readline() != b"ready\n":
            _end(player)
    for player in players:
        assert player.stdin  # the same
        player.stdin.write(b"go\n")
        player.stdin.flush()
    return [_end(player) for player in players]


def measure(cluster: Cluster, game: str, nodes: tuple[int, int], seconds: float) -> Result:
    """Play once and check."""
    script = Path(__file__).with_name("players.py").read_bytes()
    cluster.run(1, "sh", "-ec", SET_UP, given=script)
    moves = play(cluster, game, nodes, seconds)
    check = GAMES[game].check
    for reader in TWO:
        if wrong := check.judge(cluster.run(reader, *check.read), moves):
            return Result(sum(moves) / seconds, f"as node{reader} reads it: {wrong}")
    return Result(sum(moves) / seconds, "")


def show(results: dict[str, list[tuple[Result, Result]]], rounds: int, seconds: float) -> int:
    """Print medians and median ratios; return how many games went wrong."""
    print(f"{rounds} rounds of {seconds:g} s in turn; moves of both players in a second, medians")
    print_row("", ("two nodes", "one node", "two/one", "wrong"))
    all_wrong = 0
    for game, played in results.items():
        two, one = [a.rate for a, _ in played], [b.rate for _, b in played]
        wrong = sum(bool(result.wrong) for pair in played for result in pair)
        all_wrong += wrong
        figures = f"{statistics.median(two):.0f}", f"{statistics.median(one):.0f}"
        ratio = f"{median_ratio(two, one):.4f}"
        print_row(GAMES[game].name, (*figures, ratio, str(wrong) if wrong else "none"))
    return all_wrong


def main() -> int:
    """Measure and report; 1 when a game's result was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each game")
    parser.add_argument("--games", nargs="+", choices=tuple(GAMES), default=tuple(GAMES))
    args = parser.parse_args()
    results: dict[str, list[tuple[Result, Result]]] = {game: [] for game in args.games}
    with running(2) as cluster:
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            for game in args.games:
                two, one = (measure(cluster, game, nodes, args.seconds) for nodes in (TWO, ONE))
                results[game].append((two, one))
                for nodes, result in ((TWO, two), (ONE, one)):
                    if result.wrong:
                        say(f"WRONG: {game}, players on {nodes}, {result.wrong}")
    return int(show(results, args.rounds, args.seconds) > 0)


if __name__ == "__main__":
    sys.exit(main())
