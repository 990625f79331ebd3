"""How messages show what somebody sent: short, on one line, in characters that every protocol carries."""

from __future__ import annotations

MAX_QUOTED_CHARACTERS = 64


def quoted(text: str, most: int = MAX_QUOTED_CHARACTERS) -> str:
    """`text` in quotes: what is not printable ASCII is escaped, and what is too long is cut and its length told.

    >>> quoted("h\\u00e9\\n")
    "'h\\\\xe9\\\\n'"
    """
    cut = f"... ({len(text)} characters)" if len(text) > most else ""
    return ascii(text[:most]) + cut
