"""Problems that keep a cluster from serving, and failures of single steps.

A problem stands until its source clears it. A fatal problem stays, and the server ends with it. A failed step is no
problem of the cluster: it is logged with its traceback, and its requests end with an error.
"""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from moorage.workers.errors import Internal, MoorageError, Unavailable

log = structlog.get_logger()

MOST_IN_A_ROW = 5
"""Failed steps, with none between that succeeded, after which the worker must show that it still answers."""
_MAX_REASON_CHARACTERS = 300


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
        """The rank of a problem: of several, the one with the largest severity is reported."""
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
        """Records a problem, in place of an earlier one of the same source that is not fatal."""
        before, problem = self._problems.get(source), Problem(message, fatal, fails_requests)
        if before == problem or (before is not None and before.fatal):
            return
        self._problems[source] = problem
        self._changed.set()

    def clear(self, source: str) -> None:
        """Removes the problem of a source, unless it is fatal."""
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


class StepFailures:
    """Logs failures of steps and counts them."""

    def __init__(self) -> None:
        self.total = 0
        self._in_a_row = 0

    def succeeded(self) -> None:
        """Records that a step with work in it has run."""
        self._in_a_row = 0

    def record(self, error: Exception, doing: str, requests: Mapping[str, int]) -> MoorageError:
        """Counts `error`, raised while `doing`, and logs it; returns the error for the requests concerned."""
        self.total += 1
        self._in_a_row += 1
        return logged(error, doing, requests)

    @property
    def many_in_a_row(self) -> bool:
        """Whether the loop should check that the worker still answers."""
        return self._in_a_row >= MOST_IN_A_ROW

    def hopeless(self, error: Exception) -> Unavailable:
        """Logs that a step without any request failed as well; returns why the cluster has failed."""
        self.record(error, "a step without a request", {})
        return Unavailable(
            f"{self._in_a_row} steps in a row failed, the last one, without any request, with {_reason(error)}; "
            "look in the log and launch the cluster again"
        )


def logged(
    error: Exception, doing: str, requests: Mapping[str, int], *, show_message: bool = True
) -> MoorageError:
    """Logs `error` with its traceback under an id; returns the error for the client.

    That is the error itself where it has a message of ours. `requests` are the requests concerned, with the worker's
    session of each. `show_message` is False where messages may hold what a user wrote.
    """
    error_id = secrets.token_hex(4)
    log.error(
        f"{doing} failed",
        error_id=error_id,
        requests=dict(requests),
        reason=_reason(error) if show_message else type(error).__name__,
        exception=error.trace if isinstance(error, Internal) else places(error),
    )
    if isinstance(error, MoorageError) and not isinstance(error, Internal):
        return error
    return MoorageError(f"internal error {error_id}; the server's log explains it")


def places(error: BaseException) -> str:
    """The traceback without the exception's own message, one place a line."""
    lines = [
        f"  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return "\n".join([*lines, type(error).__name__])


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON_CHARACTERS]
