"""Harmony, the format of gpt-oss: an answer is a sequence of messages, each in a channel.

`analysis` is reasoning, `final` the answer, and a message of `commentary` with a recipient calls a tool. The prompt
ends with `<|start|>assistant`, so an answer begins within the header of its first message:

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moorage.runtime.text.tools.call_scanner import CallScanner
from moorage.runtime.text.tools.json_calls import Marks
from moorage.runtime.text.tools.named_calls import NamedCallFormat
from moorage.runtime.text.tools.parts import AnswerParser, Part, Reasoned, Said, overlap
from moorage.runtime.text.tools.stepwise import StepwiseParser

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START)
TOKENS = (_CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS)
_RECIPIENT = re.compile(r"to=(?:functions\.)?(\S.*?)\s*(?:<\||\s(?:json|code)\b|$)")
_OF_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)")
_HEADS = (_CHANNEL, " to=", _START)
"""How an answer begins that begins with a header."""


class HarmonyParser(StepwiseParser):
    """Splits one answer. It implements `AnswerParser`. Without `calls` a call of a tool is text."""

    def __init__(self, *, calls: bool = True) -> None:
        super().__init__()
        self._calls = calls
        self._state = self._at_begin
        self._header = ""
        self._reasons = False
        """Whether the present message is reasoning."""

    @property
    def reasons(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._reasons or self._state != self._in_text

    def finish(self) -> list[Part]:
        """See `AnswerParser`. A header without its message says nothing."""
        if self._scanner is not None:
            self._give_up(self._scanner)
        elif self._state in (self._at_begin, self._in_text):
            self._say(self._held)
        self._held = ""
        return self._taken()

    def _at_begin(self) -> bool:
        """An answer that does not begin with a header is the text of a message."""
        if any(len(self._held) < len(head) and head.startswith(self._held) for head in _HEADS):
            return False
        self._state = self._in_header if self._held.startswith(_HEADS) else self._in_text
        return True

    def _in_header(self) -> bool:
        """Reads up to the message, and sees what it is."""
        header, found, after = self._held.partition(_MESSAGE)
        if not found:
            return False
        self._held, self._header = after, header
        channel, recipient = _OF_CHANNEL.search(header), _RECIPIENT.search(header)
        self._reasons = channel is not None and channel.group(1) == "analysis"
        if recipient is not None and self._calls:
            self._scanner, self._begun = CallScanner(name=recipient.group(1)), False
            self._state = self._in_call
        else:
            self._state = self._in_text
        return True

    def _in_text(self) -> bool:
        """Passes a message on up to its end."""
        found = [(at, mark) for mark in _ENDS if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._say(self._held[:at])
            self._held = self._held[at + len(mark) :]
            self._state = self._in_header
            return True
        kept = max(overlap(self._held, mark) for mark in _ENDS)
        shown = self._held[: len(self._held) - kept]
        self._say(shown)
        self._held = self._held[len(shown) :]
        return False

    def _in_call(self) -> bool:
        scanner = self._scanned()
        if scanner.failed:
            self._give_up(scanner)
            self._state = self._in_text
        elif scanner.ended:
            self._state = self._in_header
        else:
            return False
        self._scanner = None
        return True

    def _give_up(self, scanner: CallScanner) -> None:
        """What was read of a call is no call."""
        if self._begun:
            self._break_call(scanner.raw)
        else:
            self._say(scanner.raw)

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(Reasoned(text) if self._reasons else Said(text))


@dataclass(frozen=True, slots=True)
class HarmonyFormat(NamedCallFormat):
    """The format; its parser reads channels, too."""

    def parser(self, schemas: Mapping[str, Mapping[str, Any]]) -> AnswerParser:
        """See `ToolFormat`."""
        del schemas
        return HarmonyParser()


FORMAT = HarmonyFormat(
    "openai",
    Marks(),
    in_template=(_CHANNEL,),
    before_each=f"{_CHANNEL}commentary to=functions.",
    after_name=f" {_CONSTRAIN}json{_MESSAGE}",
    separator=f"<|end|>{_START}assistant",
    tokens=TOKENS,
)
