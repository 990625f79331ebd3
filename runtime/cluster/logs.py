"""Logging of the server's processes: one line for each event, on stderr, without text of prompts."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog


def configure_logs() -> None:
    """Makes structlog print key=value lines with UTC times, in colour on a terminal.

    The C core of gRPC then prints errors only, provided that grpc is not imported yet.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # structlog's own tracebacks show local variables, which may hold text of a prompt.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=_stderr_logger,
        cache_logger_on_first_use=False,
    )


def _stderr_logger(*_: Any) -> structlog.PrintLogger:
    """Takes the present sys.stderr for each line, because a live view may have replaced it."""
    return structlog.PrintLogger(cast("TextIO", _STDERR))


class _Stderr:
    """Writes to the present sys.stderr. A line is lost where nobody reads it any longer, and the server goes on."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


_STDERR = _Stderr()
"""One for all lines, since structlog keeps a lock for each file."""
