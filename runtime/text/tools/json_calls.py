"""The parser for formats that write calls as JSON objects."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from moorage.runtime.text.tools.call_scanner import CallScanner
from moorage.runtime.text.tools.parts import Part, Said, overlap
from moorage.runtime.text.tools.stepwise import StepwiseParser

_MOST_BEFORE_ARGUMENTS = 256
"""Characters of a name before its arguments, with the marks between them."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How calls stand in an answer."""

    begins: tuple[str, ...] = ()
    """Texts before calls."""
    ends: tuple[str, ...] = ()
    """Texts after calls."""
    bare: bool = False
    """Whether an answer may begin with a call that has no mark before it."""
    known_names: bool = False
    """Whether only a call that names one of the tools is one. So it always is without a mark."""
    name_first: bool = False
    """Whether a call may be its name, and then the object of its arguments."""
    name: re.Pattern[str] = re.compile(r"([\w.-]+)")
    """Finds such a name at the beginning of what stands before the arguments."""
    nested: bool = False
    """Whether a mark may follow another one before a call."""
    between: str = " \t\r\n"
    """Characters that may stand round calls."""


class JsonCallParser(StepwiseParser):
    """Splits one answer. It implements `AnswerParser`."""

    def __init__(self, marks: Marks, names: Collection[str]) -> None:
        super().__init__()
        self._marks, self._names = marks, names
        self._state = self._at_begin if marks.bare else self._in_text
        self._raw = ""
        """Text from the mark, or from the call before, up to what is held: part of a call, or no call at all."""
        self._bare = False
        """Whether no mark stands before the calls."""
        self._follows_call = False
        """Whether a call came since the mark."""
        self._only_space = True
        """Whether only space came since the begin, or since a call. It is dropped where a call is next to it."""

    def finish(self) -> list[Part]:
        """See `AnswerParser`."""
        if self._scanner is not None:
            self._give_up(self._scanner)
        elif self._state == self._in_text:
            self._say(self._held if not self._num_calls else self._held.rstrip())
        else:
            self._say(self._raw + self._held)
        self._held = self._raw = ""
        return self._taken()

    def _at_begin(self) -> bool:
        """The first character that is no space decides whether the answer is a call."""
        first = self._held.lstrip()[:1]
        if first:
            self._bare = first in "{["
            self._state = self._between if self._bare else self._in_text
        return bool(first)

    def _in_text(self) -> bool:
        """Passes text on up to a mark."""
        found = [(at, mark) for mark in self._marks.begins if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            before, self._held = self._held[:at], self._held[at + len(mark) :]
            if not self._only_space or before.strip():
                self._say(before)
            self._raw, self._bare, self._follows_call = mark, False, False
            self._state = self._between
            return True
        kept = max((overlap(self._held, mark) for mark in self._marks.begins), default=0)
        shown = self._held[: len(self._held) - kept]
        if shown.strip() or not self._only_space:
            self._say(shown)
            self._held = self._held[len(shown) :]
        return False

    def _between(self) -> bool:
        """Round calls: finds the next one, or that none comes."""
        marks = (*self._marks.begins, *self._marks.ends)
        rest = _stripped(self._held, self._marks.between, marks)
        if not self._follows_call:
            self._raw += self._held[: len(self._held) - len(rest)]
        self._held = rest
        if any(len(rest) < len(mark) and mark.startswith(rest) for mark in marks):
            return False
        if rest.startswith("{"):
            self._scanner = CallScanner(self._names if self._bare or self._marks.known_names else None)
            self._state = self._in_call
        elif self._marks.nested and (mark := next(filter(rest.startswith, marks), "")):
            self._nested_mark(mark)
        elif self._may_be_name(rest):
            return self._named_call()
        else:
            self._after_calls(next((mark for mark in self._marks.ends if rest.startswith(mark)), ""))
        return True

    def _nested_mark(self, mark: str) -> None:
        """A mark after another one, or after a call."""
        if mark in self._marks.begins:
            self._raw = ("" if self._follows_call else self._raw) + mark
            self._follows_call = False
        elif not self._follows_call:
            self._after_calls(mark)
            return
        self._held = self._held[len(mark) :]

    def _may_be_name(self, rest: str) -> bool:
        allowed = self._marks.name_first and not self._follows_call and not self._bare
        return allowed and bool(self._marks.name.match(rest))

    def _after_calls(self, end: str) -> None:
        """Goes back to text. Without a call since the mark, that and what followed it are text too."""
        if self._follows_call:
            self._held = self._held[len(end) :]
        else:
            self._say(self._raw)
        self._raw, self._state = "", self._in_text

    def _named_call(self) -> bool:
        """Reads a name up to the arguments that follow it."""
        before, brace, after = self._held.partition("{")
        if not brace and len(before) <= _MOST_BEFORE_ARGUMENTS:
            return False
        named = self._marks.name.match(before)
        if not brace or named is None:
            self._after_calls("")
        else:
            self._raw += before
            self._scanner = CallScanner(name=named.group(1))
            self._held, self._state = brace + after, self._in_call
        return True

    def _in_call(self) -> bool:
        scanner = self._scanned()
        if scanner.failed:
            self._give_up(scanner)
        elif scanner.ended:
            self._follows_call = self._only_space = True
            self._raw, self._state = "", self._between
        else:
            return False
        self._scanner, self._begun = None, False
        return True

    def _give_up(self, scanner: CallScanner) -> None:
        """What was read of a call is no call."""
        raw = self._raw + scanner.raw
        if self._begun:
            self._break_call(raw)
            self._only_space = False
        else:
            self._say(raw)
        self._raw, self._state = "", self._in_text

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(Said(text))
            self._only_space = self._only_space and text.isspace()


def _stripped(text: str, characters: str, marks: Sequence[str]) -> str:
    """`text` from the first that is none of `characters`, or that may begin one of `marks`."""
    at = 0
    while text[at : at + 1] and text[at] in characters:
        if any(mark.startswith(text[at : at + len(mark)]) for mark in marks):
            break
        at += 1
    return text[at:]
