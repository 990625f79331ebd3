"""Background tasks of the server. What they raise is logged with its traceback and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from moorage.runtime.serving.health import places
from moorage.workers.errors import MoorageError, Unavailable

log = structlog.get_logger()


def log_stray_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Logs what tasks and callbacks raise that nothing awaits, in place of asyncio's own report."""
    loop.set_exception_handler(_stray)


async def repeated(name: str, action: Callable[[], Awaitable[None]], every_s: float) -> None:
    """Runs `action` again and again. When it raises, that is logged once for each kind, and the loop goes on."""
    logged: set[type[Exception]] = set()
    while True:
        try:
            await action()
        except Exception as error:  # noqa: BLE001  the task must go on
            if type(error) not in logged:
                logged.add(type(error))
                log.error(f"{name} failed", kind=type(error).__name__, exception=places(error))
        await asyncio.sleep(every_s)


async def essential(name: str, work: Awaitable[None]) -> None:
    """Awaits work that the server needs for as long as it serves. Raises Unavailable when the work ends."""
    try:
        await work
    except MoorageError:
        raise
    except Exception as error:
        log.error(f"{name} failed", kind=type(error).__name__, exception=places(error))
        raise Unavailable(
            f"{name} ended with {type(error).__name__}; the log has its traceback; start the cluster again"
        ) from error
    raise Unavailable(f"{name} has ended; start the cluster again")


def _stray(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, Exception):
        log.error(
            "a task failed", kind=type(error).__name__, what=context["message"], exception=places(error)
        )
    else:
        log.error("a task failed", what=context["message"])
