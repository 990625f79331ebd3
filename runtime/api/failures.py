"""What a client and the log get of an error in a handler."""

from __future__ import annotations

import secrets
import traceback

import structlog

from moorage.workers.errors import MoorageError

log = structlog.get_logger()


def foreseen(error: Exception) -> MoorageError:
    """The error that the client gets.

    One that no rule foresees gets an id. The log has its place in the code under that id, but not its message, which
    may hold what the user wrote.
    """
    if isinstance(error, MoorageError):
        return error
    error_id = secrets.token_hex(4)
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("request failed", error_id=error_id, kind=type(error).__name__, places=places)
    return MoorageError(f"internal error {error_id}; the server's log explains it")
