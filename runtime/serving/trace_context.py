"""The trace that a request belongs to, as its client names it by the headers of W3C Trace Context.

Front ends set it for the task that serves a call. It is kept where no traces are sent, too, and costs nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar

_HEADERS = ("traceparent", "tracestate")
_MOST_CHARACTERS = 512
"""Most characters of one header, as the recommendation has it."""
_NONE: Mapping[str, str] = {}
_CALLER: ContextVar[Mapping[str, str]] = ContextVar("moorage_trace", default=_NONE)


def set_caller(headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
    """Takes the trace of the present task from the headers of HTTP or the metadata of gRPC."""
    found = {name: value for name, value in map(_as_text, headers) if name in _HEADERS}
    _CALLER.set({name: value for name, value in found.items() if len(value) <= _MOST_CHARACTERS})


def trace_of_caller() -> Mapping[str, str]:
    """The headers of the present task; none where its client named no trace."""
    return _CALLER.get()


def _as_text(header: tuple[str | bytes, str | bytes]) -> tuple[str, str]:
    name, value = (part if isinstance(part, str) else part.decode("latin-1") for part in header)
    return name.lower(), value
