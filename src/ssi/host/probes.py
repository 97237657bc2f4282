"""Trying out what this machine's kernel lets an ordinary process do."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
PTRACE_TRACEME = 0
BPF_RET = 0x06
SECCOMP_RET_ALLOW = 0x7FFF0000

PROBE_S = 10


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_uint16), ("first", ctypes.POINTER(_Instruction)))


def _errno(result: int) -> int:
    return ctypes.get_errno() if result < 0 else 0


def _filter_calls() -> int:
    allow = _Instruction(BPF_RET, 0, 0, SECCOMP_RET_ALLOW)
    program = _Program(1, ctypes.pointer(allow))
    if error := _errno(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)):
        return error
    return _errno(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _be_traced() -> int:
    return _errno(_libc.ptrace(PTRACE_TRACEME, 0, None, None))


def _try_in_child(attempt: Callable[[], int]) -> str | None:
    """Return what is wrong when a child process does `attempt`, which returns an errno."""
    pid = os.fork()
    if pid == 0:
        os._exit(attempt())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        return f"killed by signal {-status}"
    return os.strerror(status) if status else None


def try_seccomp() -> str | None:
    """Return why a process may not filter its own system calls, None when it may."""
    return _try_in_child(_filter_calls)


def try_ptrace() -> str | None:
    """Return why a process may not be traced by its parent, None when it may."""
    return _try_in_child(_be_traced)


def memory_folder() -> Path:
    """Return where UML keeps the memory of a node, given the environment we start it with."""
    shared = Path("/dev/shm")
    mounts = Path("/proc/mounts").read_text().splitlines()
    tmpfs = any(line.split()[1:3] == [str(shared), "tmpfs"] for line in mounts)
    return shared if tmpfs else Path("/tmp")


def try_executable_memory(folder: Path) -> str | None:
    """Return why a file in `folder` may not be mapped executable, None when it may."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(mmap.PAGESIZE)
            protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
            mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=protection).close()
    except OSError as error:
        return error.strerror
    return None


def try_command(*argv: str) -> str | None:
    """Return why `argv` fails, None when it does not."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, timeout=PROBE_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return said[-1]


def try_imports(*modules: str) -> str | None:
    """Return which of `modules` Python cannot import, None when it can all."""
    return try_command(sys.executable, "-c", f"import {', '.join(modules)}")
