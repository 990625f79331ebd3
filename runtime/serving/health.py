"""What keeps a cluster from serving, told by whoever finds it and heard by whoever must act.

A problem stands until its source takes it back. A fatal problem stays, and the server ends with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from moorage.workers.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Problem:
    """One line that says what, where and what to do."""

    message: str
    fatal: bool = False
    """The cluster can't go on: the server fails its requests and ends."""
    fails_requests: bool = False
    """Requests that run or wait are failed; new ones are refused under any problem."""

    @property
    def severity(self) -> int:
        """Of two problems, that with the larger one is told."""
        return 2 * self.fatal + self.fails_requests


class ClusterHealth:
    """The problems of one cluster by their source. It belongs to one event loop."""

    def __init__(self) -> None:
        self._problems: dict[str, Problem] = {}
        self._changed = asyncio.Event()

    @property
    def problem(self) -> Problem | None:
        """The most severe problem, of several the one that came first; None while all is well."""
        return max(self._problems.values(), key=lambda problem: problem.severity, default=None)

    def report(self, source: str, message: str, *, fatal: bool = False, fails_requests: bool = False) -> None:
        """Notes a problem, in place of an earlier one of the same source that is not fatal."""
        before, problem = self._problems.get(source), Problem(message, fatal, fails_requests)
        if before == problem or (before is not None and before.fatal):
            return
        self._problems[source] = problem
        self._changed.set()

    def clear(self, source: str) -> None:
        """Takes a problem back, unless it is fatal."""
        before = self._problems.get(source)
        if before is not None and not before.fatal:
            del self._problems[source]
            self._changed.set()

    def check(self) -> None:
        """Raises Unavailable while there is a problem."""
        if self.problem is not None:
            raise Unavailable(self.problem.message)

    async def changed(self) -> Problem | None:
        """Waits for the next report or clearance, or returns at once if one came since the last call."""
        await self._changed.wait()
        self._changed.clear()
        return self.problem
