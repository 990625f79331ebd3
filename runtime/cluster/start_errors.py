"""What kept a Ray actor from starting, as one line: Ray tells it inside pages of text."""

from __future__ import annotations

import re

from moorage.workers import errors
from moorage.workers.errors import MoorageError, Unavailable

_OURS = re.compile(r"(?:moorage\.workers\.errors\.)(\w+): (.+)")
_MOST_CHARS = 300


def start_error(error: Exception) -> Exception:
    """The project's own error where an actor raised one, else Unavailable with the line of Ray's text that says why.

    Of an actor that died Ray lists class, pid and namespace, each on an indented line; these say nothing.
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
    told = [line for line in lines if not line[0].isspace()]
    text = told[-1] if told else repr(cause)
    return Unavailable(f"a worker failed to start: {text[:_MOST_CHARS]}; its Ray log says more")
