"""Finds the texts of tokens in a text, as fast for thousands of tokens as for one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence


class SpelledTokens:
    """The texts of some tokens. Of those that begin at one place, the longest counts.

    With `before`, only those count that one of these other texts follows.
    """

    def __init__(self, texts: Iterable[str], before: Collection[str] | None = None) -> None:
        pattern = _any_of(texts)
        self._pattern = re.compile(pattern if before is None else f"{pattern}(?={_any_of(before)})")

    def found_in(self, text: str) -> Iterator[str]:
        """Each of them that is spelled in `text`, as often as it is."""
        return (match.group() for match in self._pattern.finditer(text))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of each of them in `text`."""
        return (match.span() for match in self._pattern.finditer(text))


def _any_of(texts: Iterable[str]) -> str:
    found = sorted({text for text in texts if text})
    return f"(?:{_alternatives(found)})" if found else "(?!)"


def _alternatives(texts: Sequence[str]) -> str:
    """A regular expression for any of some sorted texts, the longest first: a tree, so that it stays fast."""
    shared = _shared_begin(texts)
    groups: dict[str, list[str]] = {}
    for rest in (text[len(shared) :] for text in texts):
        if rest:
            groups.setdefault(rest[0], []).append(rest)
    branches = "|".join(_alternatives(group) for group in groups.values())
    ends_here = texts[0] == shared
    return re.escape(shared) + (f"(?:{branches}){'?' if ends_here else ''}" if branches else "")


def _shared_begin(texts: Sequence[str]) -> str:
    first, last = texts[0], texts[-1]
    pairs = zip(first, last, strict=False)
    return first[: next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))]
