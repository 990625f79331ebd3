"""Processes that can't be mistaken for others: a pid with its start time, and how to end them."""

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

_POLL_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36


class ProcessState(StrEnum):
    """What the kernel says of a process, as far as it matters to those who need it."""

    RUNNING = "running"
    """It runs or sleeps, however busy it is."""
    STOPPED = "stopped"
    """By SIGSTOP, a terminal or a debugger; it goes on after SIGCONT."""
    GONE = "gone"
    """Ended, or a zombie."""


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOPPED = "Tt"
_ENDED = "ZXx"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from a later one of the same pid by when it started."""

    pid: int
    started_s: float
    """Seconds after the host's boot. Setting the clock moves every time since the epoch, and not this one."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The running process of that pid, or None."""
        found = _look(pid)
        return None if found is None else cls(pid, found[1])

    @property
    def state(self) -> ProcessState:
        """What it does now. A later process of the same pid counts as gone."""
        found = _look(self.pid)
        if found is None or found[1] != self.started_s or found[0] in _ENDED:
            return ProcessState.GONE
        return ProcessState.STOPPED if found[0] in _STOPPED else ProcessState.RUNNING

    @property
    def alive(self) -> bool:
        """Whether it still runs, be it stopped; a zombie does not."""
        return self.state is not ProcessState.GONE

    def send(self, number: signal.Signals) -> None:
        """Signals it if it is still there."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _look(pid: int) -> tuple[str, float] | None:
    """(state letter, start in seconds after boot) of a process, as proc(5) tells them; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[19]) / _TICKS_PER_S


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent dies, so that none is lost (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[ProcessId]:
    """All processes below `pid`; empty when it is gone."""
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
    """Asks all of them with SIGTERM and kills those that stay. Returns the killed ones."""
    asked = list(processes)
    for process in asked:
        process.send(signal.SIGTERM)
    stubborn = wait_gone(asked, grace_s)
    for process in stubborn:
        process.send(signal.SIGKILL)
    wait_gone(stubborn, grace_s)
    return stubborn
