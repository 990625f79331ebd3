"""How a client reaches a server, and the error that it raises for a failed call."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from moorage.workers.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    MoorageError,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

READY_POLL_S = 0.2
CONNECT_TIMEOUT_S = 5.0
"""How long a client tries to reach a server before it raises Unavailable."""
_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_OWN_DEADLINE = "Deadline Exceeded"
"""The message of gRPC when the time limit of a call has passed; the server has other messages for its limits."""
_SERVICE = "moorage.v1.Moorage"
_IDEMPOTENT = ("Tokenize", "Detokenize", "ListModels", "GetStatus", "ListSessions")
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": method} for method in _IDEMPOTENT],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = (
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_ERRORS: dict[grpc.StatusCode, type[MoorageError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def error_classes() -> set[type[MoorageError]]:
    """The classes of all errors that `error_of` and a client itself raise."""
    return {MoorageError, ResourceExhausted, *_ERRORS.values()}


def unreachable(address: str) -> Unavailable:
    """The error of a server that could not be reached."""
    return Unavailable(
        f"no server answers at {address}; start one with `runtime launch FILE`, or give its address"
    )


def not_ready(address: str, timeout_s: float) -> str:
    """The message when a server was not ready in time."""
    return f"{address} was not ready within {timeout_s:g} s; look in the server's log or wait longer"


def error_of(error: grpc.RpcError) -> MoorageError:
    """The error that the server raised, from the status of a failed call."""
    code, message = error.code(), error.details() or "the call failed without a reason"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(message, retry_after_s=_retry_after_s(error.trailing_metadata()))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and _OWN_DEADLINE in message:
        return DeadlineExceeded("the time limit of the call has passed; raise timeout_s or ask for less")
    kind = _ERRORS.get(code, MoorageError)
    return kind(message)


def _retry_after_s(metadata: Iterable[Any] | None) -> float | None:
    """google.rpc.RetryInfo of a status, in seconds."""
    packed = next((value for key, value in metadata or () if key == _STATUS_DETAILS_KEY), None)
    if not isinstance(packed, bytes):
        return None
    info = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds()) / 1e9
    return None
