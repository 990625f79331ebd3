"""From an exception in a handler to the status that the client gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from moorage.runtime.api.failures import foreseen
from moorage.runtime.api.status import status_of
from moorage.workers.errors import MoorageError, ResourceExhausted

log = structlog.get_logger()

STATUS_DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE_CHARACTERS = 1000
_MAX_MESSAGE_BYTES = 2000
"""On the wire, where a byte that is not printable ASCII takes three; all metadata of a call have 8 KiB."""
_PLAIN = "".join(map(chr, range(32, 127)))
_LINGER_S = 1.0
_CANCELLED_WITHIN_S = 1.0
"""Longest wait for the cancellation of a call whose write failed."""
_MAX_LINGER_MESSAGES = 64
_lingering = asyncio.Semaphore(64)
"""Calls that `read_on` reads at once; a flood of refused calls must not stay open."""


@asynccontextmanager
async def reported(
    context: grpc.aio.ServicerContext[Any, Any], requests: AsyncIterator[Any] | None = None
) -> AsyncIterator[None]:
    """Ends the call with the status of what was raised inside, after `read_on`.

    An error that no rule foresees becomes INTERNAL with an id (see `foreseen`). A call that its client has ended is
    no error.
    """
    try:
        async with _cancelled_when_left():
            yield
    except MoorageError as error:
        code = grpc.StatusCode[status_of(error).grpc]
        message = carried(str(error))
        log.info("request refused", code=code.name, kind=type(error).__name__)
        await read_on(requests)
        await end(context, code, message, _details(code, message, error))
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001  the last line before the network
        await end(context, grpc.StatusCode.INTERNAL, str(foreseen(error)))


async def end(
    context: grpc.aio.ServicerContext[Any, Any],
    code: grpc.StatusCode,
    message: str,
    details: tuple[tuple[str, bytes], ...] = (),
) -> NoReturn:
    """Ends a call with a status. Raises CancelledError where its client has ended it before, as gRPC does."""
    try:
        await context.abort(code, message, details)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


@asynccontextmanager
async def _cancelled_when_left() -> AsyncIterator[None]:
    """Waits for the cancellation of a call on which gRPC refuses to write, since its client may have ended it.

    gRPC tells the end of a call, such as a deadline that passes, twice: a write fails, and the task is cancelled.
    Where no cancellation comes, the error is the server's own.
    """
    try:
        yield
    except grpc.aio.InternalError:
        await asyncio.sleep(_CANCELLED_WITHIN_S)
        raise


def ignore_clients_that_left() -> None:
    """Keeps gRPC from printing a traceback where it could not send, since the client had ended the call."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_failed_write)


def _is_no_failed_write(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], grpc.aio.InternalError)


def carried(message: str) -> str:
    """A message as metadata can carry it: one line, clipped by its size on the wire."""
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()[:_MAX_MESSAGE_CHARACTERS]
    while len(quote(line, safe=_PLAIN)) > _MAX_MESSAGE_BYTES:
        line = line[: len(line) * 3 // 4]
    return line


async def read_on(requests: AsyncIterator[Any] | None) -> None:
    """Reads some more messages, since a client whose call ends while it sends may not get the status."""
    if requests is None or _lingering.locked():
        return
    async with _lingering:
        with suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(_LINGER_S):
                for _ in range(_MAX_LINGER_MESSAGES):
                    await anext(requests)


def _details(code: grpc.StatusCode, message: str, error: MoorageError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata with google.rpc.RetryInfo, for an error that says when to try again."""
    if not isinstance(error, ResourceExhausted) or error.retry_after_s is None:
        return ()
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(error.retry_after_s * 1e9))
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    return ((STATUS_DETAILS_KEY, status.SerializeToString()),)
