"""Looks at the processes that a cluster needs, and reports those that are stopped or gone.

What the kernel says of a process does not depend on how busy the process is: a step of minutes or a compilation is no
alarm. A process is looked at twice before it counts as stopped, since a debugger stops one for moments.
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
"""Between two looks; a loss is reported within one, a stop within two of them."""
PATIENCE_S = 10.0
"""A stop that is shorter costs no request; after it, those that run or wait are failed."""
GIVE_UP_S = 600.0
"""A process that is stopped for longer counts as lost."""


@dataclass(slots=True)
class Watched:
    """A process that the cluster can't do without."""

    name: str
    """As messages call it, such as "KV actor kv-3f2a-0"."""
    process: ProcessId
    loss: str
    """What its end takes with it, as the middle of a sentence."""
    in_steps: bool = True
    """Whether each step needs it: while it is stopped, no request goes on."""
    state: ProcessState = field(default=ProcessState.RUNNING, init=False)
    stopped_since_s: float | None = field(default=None, init=False)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.process.pid})"


class ProcessWatch:
    """Reports to a ClusterHealth. A loss is fatal; a stop is taken back when the process goes on."""

    def __init__(
        self,
        watched: Sequence[Watched],
        health: ClusterHealth,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched, self._health, self._clock = tuple(watched), health, clock

    def state_of(self, pid: int) -> ProcessState:
        """Of a watched process, as of the last look; RUNNING for any other."""
        return next((one.state for one in self._watched if one.process.pid == pid), ProcessState.RUNNING)

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Looks at every process once."""
        for one in self._watched:
            if one.state is ProcessState.GONE:
                continue
            state = one.process.state
            if state is ProcessState.GONE:
                self._gone(one)
            elif state is ProcessState.STOPPED:
                self._stopped(one)
            elif one.stopped_since_s is not None:
                self._goes_on(one)

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

    def _goes_on(self, one: Watched) -> None:
        if one.state is ProcessState.STOPPED:
            stopped_s = self._clock() - (one.stopped_since_s or 0.0)
            log.info("process goes on", name=one.name, pid=one.process.pid, stopped_s=round(stopped_s, 1))
            self._health.clear(one.name)
        one.state, one.stopped_since_s = ProcessState.RUNNING, None
