"""How the server's processes log: one line an event, to stderr, never with prompt text."""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog


def configure_logs() -> None:
    """Key=value lines with UTC times, coloured on a terminal.

    The C core of gRPC tells errors only, if this comes before grpc is imported.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # The pretty tracebacks show local variables, which may hold what a user wrote.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=_stderr_logger,
        cache_logger_on_first_use=False,
    )


def _stderr_logger(*_: Any) -> structlog.PrintLogger:
    """Looks stderr up anew for each line, since a live view may have put itself in its place."""
    return structlog.PrintLogger(sys.stderr)
