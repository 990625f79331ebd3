"""How messages show a text that a client sent: short, on one line, in printable ASCII."""

from __future__ import annotations

MAX_QUOTED_CHARACTERS = 64


def quoted(text: str) -> str:
    """`text` in quotes: characters other than printable ASCII are escaped; a long text is cut, with its length.

    >>> quoted("h\\u00e9\\n")
    "'h\\\\xe9\\\\n'"
    """
    cut = f"... ({len(text)} characters)" if len(text) > MAX_QUOTED_CHARACTERS else ""
    return ascii(text[:MAX_QUOTED_CHARACTERS]) + cut
