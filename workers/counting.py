"""Numbers with their noun, for messages: `1 token`, `2,048 tokens`."""

from __future__ import annotations

_ENDS_IN_ES = ("s", "x", "ch", "sh")


def counted(number: int, noun: str, *, commas: bool = False) -> str:
    """`1 token` or `3 tokens`; with `commas`, `1,024 tokens`. `noun` is in the singular."""
    shown = f"{number:,}" if commas else str(number)
    return f"{shown} {noun}" if number == 1 else f"{shown} {plural(noun)}"


def plural(noun: str) -> str:
    """The regular plural of a noun."""
    return noun + ("es" if noun.endswith(_ENDS_IN_ES) else "s")
