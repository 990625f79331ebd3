"""The reason why a Ray actor did not start, as one line of the pages that Ray prints."""

from __future__ import annotations

import re

from moorage.workers import errors
from moorage.workers.errors import MoorageError, Unavailable

_OURS = re.compile(r"(?:moorage\.workers\.errors\.)(\w+): (.+)")
_MOST_CHARS = 300


def start_error(error: Exception) -> Exception:
    """The project's own error where an actor raised one; otherwise Unavailable with the telling line of Ray's text.

    Ray lists class, pid and namespace of an actor that died on indented lines, which give no reason.
    """
    cause = getattr(error, "cause", None)
    cause = cause if isinstance(cause, Exception) else error
    if isinstance(cause, MoorageError):
        return cause
    lines = [line.rstrip() for line in str(cause).splitlines() if line.strip()]
    for line in reversed(lines):
        own = _OURS.fullmatch(line.strip())
        kind = getattr(errors, own[1], None) if own else None
        if own and isinstance(kind, type) and issubclass(kind, MoorageError):
            return kind(own[2])
    reasons = [line for line in lines if not line[0].isspace()]
    text = reasons[-1] if reasons else repr(cause)
    return Unavailable(f"a worker failed to start: {text[:_MOST_CHARS]}; its Ray log says more")
