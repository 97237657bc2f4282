"""Has children, and tells how they fare: one line of answer for each line of its input."""

import os
import signal
import sys
from collections.abc import Callable

heard: list[int] = []


def say(*words: object) -> None:
    print(*words, os.uname().nodename, flush=True)


def fork(*, silent: bool = True) -> int:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, lambda *_: say("child"))
        if silent:
            os.closerange(0, 3)
        while True:
            signal.pause()
    return pid


def wait(pid: str) -> None:
    _, status = os.waitpid(int(pid), os.WUNTRACED | os.WCONTINUED)
    say(status, len(heard))


def poll() -> None:
    try:
        say(*os.waitpid(-1, os.WNOHANG | os.WUNTRACED))
    except ChildProcessError:
        say("none")


def kill(pid: str, number: str) -> None:
    os.kill(int(pid), int(number))
    say("killed")


COMMANDS: dict[str, Callable[..., None]] = {
    "fork": lambda: say(fork()),
    "fork-loud": lambda: say(fork(silent=False)),
    "wait": wait,
    "poll": poll,
    "kill": kill,
    "parent": lambda: say(os.getppid()),
}

signal.signal(signal.SIGCHLD, lambda number, _: heard.append(number))
say(os.getpid())
for line in sys.stdin:
    name, *words = line.split()
    COMMANDS[name](*words)
