"""The gRPC and the HTTP status of each error. A test checks that no error of `workers/errors.py` lacks one."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.workers import errors


@dataclass(frozen=True, slots=True)
class Status:
    """One outcome in both protocols."""

    grpc: str
    """Name of the grpc.StatusCode."""
    http: int


INTERNAL = Status("INTERNAL", 500)
"""The status of errors that the project does not foresee."""

STATUS: dict[type[errors.MoorageError], Status] = {
    errors.MoorageError: INTERNAL,
    errors.InvalidRequest: Status("INVALID_ARGUMENT", 400),
    errors.InvalidConfig: Status("INVALID_ARGUMENT", 400),
    errors.NotFinite: Status("INVALID_ARGUMENT", 400),
    errors.InvalidModel: Status("INVALID_ARGUMENT", 400),
    errors.Unauthenticated: Status("UNAUTHENTICATED", 401),
    errors.NotFound: Status("NOT_FOUND", 404),
    errors.FailedPrecondition: Status("FAILED_PRECONDITION", 409),
    errors.ResourceExhausted: Status("RESOURCE_EXHAUSTED", 429),
    errors.StoreFull: Status("RESOURCE_EXHAUSTED", 429),
    errors.Unavailable: Status("UNAVAILABLE", 503),
    errors.PeerDead: Status("UNAVAILABLE", 503),
    errors.Internal: INTERNAL,
    errors.Cancelled: Status("CANCELLED", 499),
    errors.DeadlineExceeded: Status("DEADLINE_EXCEEDED", 504),
}


def status_of(error: BaseException) -> Status:
    """The status of an error, by its class or the nearest class above; INTERNAL for any other."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), INTERNAL)
