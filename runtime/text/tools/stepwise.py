"""What parsers share that read an answer state by state, and scan the calls in it."""

from __future__ import annotations

from collections.abc import Callable

from moorage.runtime.text.tools.call_scanner import CallScanner
from moorage.runtime.text.tools.parts import CallArguments, CallBegun, CallBroken, CallEnded, Part


class StepwiseParser:
    """Keeps what is not judged yet, and the parts that are found.

    A state judges the beginning of `_held`. It returns whether the next state, or itself, may judge more.
    """

    _state: Callable[[], bool]

    def __init__(self) -> None:
        self._held = ""
        """Text that is not judged yet."""
        self._scanner: CallScanner | None = None
        self._begun = False
        """Whether the call that is read was told."""
        self._num_calls = 0
        self._parts: list[Part] = []

    def push(self, text: str) -> list[Part]:
        """See `AnswerParser`."""
        self._held += text
        while self._held and self._state():
            pass
        return self._taken()

    def _scanned(self) -> CallScanner:
        """The scanner, which has read what is held of its call; the parts of the call are told."""
        scanner = self._scanner
        assert scanner is not None
        self._held = scanner.push(self._held)
        if scanner.begun and not self._begun:
            assert scanner.name is not None
            self._parts.append(CallBegun(self._num_calls, scanner.name))
            self._begun = True
        if piece := scanner.take_arguments():
            self._parts.append(CallArguments(self._num_calls, piece))
        if scanner.ended and not scanner.failed:
            self._parts.append(CallEnded(self._num_calls))
            self._num_calls += 1
        return scanner

    def _break_call(self, raw: str) -> None:
        """Tells that a call of which a part was told is no call, but the text `raw`."""
        self._parts.append(CallBroken(self._num_calls, raw))
        self._num_calls += 1

    def _taken(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts
