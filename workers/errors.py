"""Errors that cross between rooms. Each carries one line that says what, where and what to do.

MoorageError
  +-- InvalidRequest       the caller sent something that can never work
  |     +-- InvalidConfig  the same, in a configuration file or flag
  |     |     +-- NotFinite  numbers beyond the range of a configured type
  |     +-- InvalidModel   the same, in a model directory
  +-- Unauthenticated      the caller has not shown who it is
  +-- NotFound             a named thing does not exist
  +-- FailedPrecondition   a named thing is not in the state that the call needs
  +-- ResourceExhausted    it could work, but not now or not on this machine
  |     +-- StoreFull      no room left in a KV store
  +-- Unavailable          a process that is needed is starting, stopping or gone
  |     +-- PeerDead       the other end of a link went away
  +-- Internal             something unexpected, with its traceback for the log
  +-- Cancelled            the caller left
  +-- DeadlineExceeded     the caller's time ran out
"""


class MoorageError(Exception):
    """Base of every error that a user may see."""


class InvalidRequest(MoorageError):
    """The caller sent something that can never work."""


class InvalidConfig(InvalidRequest):
    """A configuration value that can never work."""


class NotFinite(InvalidConfig):
    """Numbers are beyond the range of the type that the configuration gives them."""


class InvalidModel(InvalidRequest):
    """A model directory that can't be served."""


class Unauthenticated(MoorageError):
    """The caller has not shown who it is."""


class NotFound(MoorageError):
    """A named thing does not exist."""


class FailedPrecondition(MoorageError):
    """A named thing is not in the state that the call needs."""


class ResourceExhausted(MoorageError):
    """It could work, but not now or not on this machine."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_exhausted, (type(self), str(self), self.retry_after_s)


class StoreFull(ResourceExhausted):
    """No room is left in a KV store."""


class Unavailable(MoorageError):
    """A process that is needed is starting, stopping or gone."""


class PeerDead(Unavailable):
    """The other end of a link went away."""


class Internal(MoorageError):
    """Something unexpected. The message and `trace` are for the log, not for clients."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.trace)


class Cancelled(MoorageError):
    """The caller left."""


class DeadlineExceeded(MoorageError):
    """The caller's time ran out."""


def _rebuild_exhausted(
    cls: type[ResourceExhausted], message: str, retry_after_s: float | None
) -> ResourceExhausted:
    return cls(message, retry_after_s=retry_after_s)
