"""Processes of the operating system, identified by pid and start time, and how to end them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import psutil

from moorage.workers.errors import Internal

_POLL_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36


class ProcessState(StrEnum):
    """The state of a process, as the kernel reports it."""

    RUNNING = "running"
    """It runs or sleeps, however busy it is."""
    STOPPED = "stopped"
    """Stopped by SIGSTOP, a terminal or a debugger; it continues after SIGCONT."""
    GONE = "gone"
    """It has ended, or is a zombie."""


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOPPED = "Tt"
_ENDED = "ZXx"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process; its start time distinguishes it from a later process with the same pid."""

    pid: int
    started_s: float
    """Seconds after the host's boot, which a change of the clock does not move."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The running process of that pid, or None."""
        found = _look(pid)
        return None if found is None else cls(pid, found[1])

    @classmethod
    def own(cls) -> ProcessId:
        """This process. Raises Internal where /proc does not show it."""
        found = cls.of(os.getpid())
        if found is None:
            raise Internal("/proc does not show this process; mount it, as every Linux host does")
        return found

    @property
    def state(self) -> ProcessState:
        """The present state. GONE where another process has the pid."""
        found = _look(self.pid)
        if found is None or found[1] != self.started_s or found[0] in _ENDED:
            return ProcessState.GONE
        return ProcessState.STOPPED if found[0] in _STOPPED else ProcessState.RUNNING

    @property
    def alive(self) -> bool:
        """Whether it runs or is stopped."""
        return self.state is not ProcessState.GONE

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal; does nothing when it has ended."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _look(pid: int) -> tuple[str, float] | None:
    """(state letter, start in seconds after boot) of a process, from proc(5); None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[19]) / _TICKS_PER_S


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent ends, so that it can find them all (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[ProcessId]:
    """All descendants of the process `pid`; empty when it has ended."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = (ProcessId.of(child.pid) for child in children)
    return [process for process in found if process is not None]


def wait_gone(processes: Iterable[ProcessId], timeout_s: float) -> list[ProcessId]:
    """Waits for the end of all of them. Returns those that still run after `timeout_s`."""
    left = [process for process in processes if process.alive]
    until_s = time.monotonic() + timeout_s
    while left and time.monotonic() < until_s:
        time.sleep(_POLL_S)
        left = [process for process in left if process.alive]
    return left


def end(processes: Iterable[ProcessId], grace_s: float) -> list[ProcessId]:
    """Sends SIGTERM to all, and SIGKILL to those that run after `grace_s`. Returns the latter."""
    asked = list(processes)
    for process in asked:
        process.send(signal.SIGTERM)
    stubborn = wait_gone(asked, grace_s)
    for process in stubborn:
        process.send(signal.SIGKILL)
    wait_gone(stubborn, grace_s)
    return stubborn
