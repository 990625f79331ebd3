"""What becomes of an exception in a step: a line in the log with its traceback, and an error for clients."""

from __future__ import annotations

import secrets
import traceback

import structlog

from moorage.workers.errors import Internal, MoorageError, Unavailable

log = structlog.get_logger()

MOST_IN_A_ROW = 5
"""Failed steps, with none between that succeeded, after which the worker must show that it still answers."""
_MAX_REASON_CHARACTERS = 300


class StepFailures:
    """Logs failures and counts them."""

    def __init__(self) -> None:
        self.total = 0
        self._in_a_row = 0

    def succeeded(self) -> None:
        """A step with work in it has run."""
        self._in_a_row = 0

    def note(self, error: Exception, doing: str) -> MoorageError:
        """Counts `error`, raised while `doing`, and logs it; returns what the requests concerned end with."""
        self.total += 1
        self._in_a_row += 1
        return logged(error, doing)

    @property
    def many_in_a_row(self) -> bool:
        """Whether it is time to see if the worker still answers."""
        return self._in_a_row >= MOST_IN_A_ROW

    def hopeless(self, error: Exception) -> Unavailable:
        """Logs that the worker failed for itself as well; returns why the cluster has failed."""
        self.note(error, "a step without a request")
        return Unavailable(
            f"{self._in_a_row} steps in a row failed, the last one, without any request, with {_reason(error)}; "
            "look in the log and launch the cluster again"
        )


def logged(error: Exception, doing: str, *, show_message: bool = True) -> MoorageError:
    """Logs `error` with its traceback under an id; returns what a client is told.

    That is the error itself where it has a message of ours. `show_message` is False where messages may hold what a
    user wrote.
    """
    error_id = secrets.token_hex(4)
    log.error(
        f"{doing} failed",
        error_id=error_id,
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
