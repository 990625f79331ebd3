"""The parts of an answer: reasoning, text, and calls of tools with their arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Said:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoned:
    """Text of the reasoning before an answer, or between its calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The model calls a tool. `index` counts the calls of one answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The arguments of a call are whole, and a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """A call that can't be read on, or within which the answer ended. `text` is what the model wrote of it."""

    index: int
    text: str


Part = Said | Reasoned | CallBegun | CallArguments | CallEnded | CallBroken


class AnswerParser(Protocol):
    """Splits one answer into parts as its text comes."""

    def push(self, text: str) -> list[Part]:
        """The parts that `text` completes. What may begin a call is held back until that is clear."""

    def finish(self) -> list[Part]:
        """The parts that were held back, at the end of the answer."""


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`, and is not all of it."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
