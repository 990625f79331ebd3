"""Checks the processes that a cluster needs, and reports those that are stopped or have ended.

The state that the kernel reports does not depend on load: a step of minutes or a compilation raises no alarm. A
process counts as stopped after two checks, because a debugger stops one for moments.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from moorage.runtime.cluster.os_processes import ProcessId, ProcessState
from moorage.runtime.serving.health import ClusterHealth

log = structlog.get_logger()

LOOK_S = 0.5
"""Time between two checks. The end of a process is reported within one such time, a stop within two."""
PATIENCE_S = 10.0
"""A process that is stopped for longer fails the requests that run or wait; a shorter stop costs none."""
GIVE_UP_S = 600.0
"""A process that is stopped for longer counts as lost."""


@dataclass(slots=True)
class Watched:
    """A process that the cluster needs."""

    name: str
    """The name in messages, such as "KV actor kv-3f2a-0"."""
    process: ProcessId
    loss: str
    """The consequence of its end, as a part of a sentence."""
    in_steps: bool = True
    """Whether every step needs it, so that no request makes progress while it is stopped."""
    state: ProcessState = field(default=ProcessState.RUNNING, init=False)
    stopped_since_s: float | None = field(default=None, init=False)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.process.pid})"


class ProcessWatch:
    """Reports to a ClusterHealth. The end of a process is fatal; a stop is cleared when the process continues."""

    def __init__(
        self,
        watched: Sequence[Watched],
        health: ClusterHealth,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched, self._health, self._clock = tuple(watched), health, clock

    def state_of(self, pid: int) -> ProcessState:
        """State of a watched process at the last check; RUNNING for any other process."""
        return next((one.state for one in self._watched if one.process.pid == pid), ProcessState.RUNNING)

    async def run(self) -> None:
        """Checks all processes every LOOK_S, without end."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Checks every process once."""
        for one in self._watched:
            if one.state is ProcessState.GONE:
                continue
            state = one.process.state
            if state is ProcessState.GONE:
                self._gone(one)
            elif state is ProcessState.STOPPED:
                self._stopped(one)
            elif one.stopped_since_s is not None:
                self._continues(one)

    def _gone(self, one: Watched) -> None:
        one.state = ProcessState.GONE
        log.error("process gone", name=one.name, pid=one.process.pid)
        self._health.report(
            one.name, f"{one} is gone, {one.loss}; start the cluster again with `runtime launch`", fatal=True
        )

    def _stopped(self, one: Watched) -> None:
        now_s = self._clock()
        if one.stopped_since_s is None:
            one.stopped_since_s = now_s
            return
        stopped_s = now_s - one.stopped_since_s
        if stopped_s >= GIVE_UP_S:
            one.state = ProcessState.GONE
            message = f"{one} has been stopped for {GIVE_UP_S:.0f} s; end what stops it and launch again"
            self._health.report(one.name, message, fatal=True)
            return
        if one.state is not ProcessState.STOPPED:
            one.state = ProcessState.STOPPED
            log.error("process stopped", name=one.name, pid=one.process.pid)
        cure = f"continue it with `kill -CONT {one.process.pid}`, or end the cluster with `runtime stop`"
        if stopped_s < PATIENCE_S or not one.in_steps:
            self._health.report(one.name, f"{one} is stopped (state T); {cure}")
        else:
            message = f"{one} has been stopped (state T) for over {PATIENCE_S:.0f} s; {cure}"
            self._health.report(one.name, message, fails_requests=True)

    def _continues(self, one: Watched) -> None:
        if one.state is ProcessState.STOPPED:
            stopped_s = self._clock() - (one.stopped_since_s or 0.0)
            log.info("process goes on", name=one.name, pid=one.process.pid, stopped_s=round(stopped_s, 1))
            self._health.clear(one.name)
        one.state, one.stopped_since_s = ProcessState.RUNNING, None
