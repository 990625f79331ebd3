"""A grammar that begins to hold where the reasoning of an answer ends, as in vLLM."""

from __future__ import annotations

from collections.abc import Callable

from moorage.runtime.text.grammar import Guide


class DelayedGuide(Guide):
    """Allows every token up to a mark, and then what another guide allows."""

    def __init__(self, guide: Guide, mark: str, spelling: Callable[[int], str]) -> None:
        """`spelling` gives the text of a token."""
        self._guide, self._mark, self._spelling = guide, mark, spelling
        self._begun = False
        self._tail = ""
        """The end of the text so far, in which the mark may have begun."""
        self.failure = guide.failure
        self.allowed = None

    @property
    def ended(self) -> bool:
        """See Guide."""
        return self._begun and self._guide.ended

    def accept(self, token_id: int) -> None:
        """See Guide."""
        if self._begun:
            self._guide.accept(token_id)
            self.failure = self._guide.failure
        else:
            text = self._tail + self._spelling(token_id)
            self._begun = self._mark in text
            self._tail = text[-len(self._mark) :]
        if self._begun:
            self.allowed = self._guide.allowed
