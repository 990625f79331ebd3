"""Processes that can't be mistaken for others: a pid with its start time, and how to end them."""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections.abc import Iterable
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


_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from a later one of the same pid by when it started."""

    pid: int
    started_s: float
    """Seconds since the epoch, as the kernel counts them."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The running process of that pid, or None."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    @property
    def state(self) -> ProcessState:
        """What it does now. A later process of the same pid counts as gone."""
        try:
            process = psutil.Process(self.pid)
            status = process.status()
            if process.create_time() != self.started_s or status in _ENDED:
                return ProcessState.GONE
        except psutil.NoSuchProcess:
            return ProcessState.GONE
        return ProcessState.STOPPED if status in _STOPPED else ProcessState.RUNNING

    @property
    def alive(self) -> bool:
        """Whether it still runs, be it stopped; a zombie does not."""
        return self.state is not ProcessState.GONE

    def send(self, number: signal.Signals) -> None:
        """Signals it if it is still there."""
        if self.alive:
            psutil.Process(self.pid).send_signal(number)


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
