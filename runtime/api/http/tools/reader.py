"""Reads answers, event by event: what was reasoned, said and called."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from moorage.runtime.api.http.tools.calls import call_of
from moorage.runtime.api.http.tools.replays import Replays
from moorage.runtime.serving.protocol import Event, Finished, Token
from moorage.runtime.text.reasoning import ReasoningParser
from moorage.runtime.text.tools.parts import (
    AnswerParser,
    CallArguments,
    CallBegun,
    CallBroken,
    CallEnded,
    Part,
    Reasoned,
    Said,
)

_ID_BYTES = 12


@dataclass(slots=True)
class Call:
    """A call as far as it was read."""

    id: str
    name: str
    arguments: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Parsers:
    """How one answer is split. Without any it is all text."""

    calls: AnswerParser | None = None
    reasoning: ReasoningParser | None = None
    """It passes on to `calls` what is no reasoning."""
    opened: Sequence[int] = ()
    """Tokens at the end of the prompt with which the template has begun the answer."""

    @property
    def first(self) -> AnswerParser | None:
        """The parser that gets the text."""
        return self.reasoning or self.calls


class AnswerReader:
    """Reads one answer, and keeps what was reasoned, said and called."""

    def __init__(
        self,
        parsers: Parsers,
        replays: Replays,
        eos_token_ids: Sequence[int],
        id_prefix: str = "call_",
        *,
        several: bool = True,
    ) -> None:
        """`several` says whether more calls than the first are told."""
        self._parsers, self._parser, self._several = parsers, parsers.first, several
        self._replays, self._eos_token_ids, self._id_prefix = replays, eos_token_ids, id_prefix
        self._token_ids = array("I", parsers.opened)
        self._exact = True
        """Whether the client gets all that was generated."""
        self.text = ""
        """Text that belongs to no call."""
        self.reasoning = ""
        self.calls: list[Call] = []
        """All calls, also those that are not whole, of which a stream may have told a part."""
        self.reasoning_tokens = 0

    @property
    def may_reason(self) -> bool:
        """Whether the model reasons in marks that are known."""
        return self._parsers.reasoning is not None

    def read(self, event: Event | None) -> list[Part]:
        """The parts that an event brings."""
        if isinstance(event, Token):
            if self._parser is None:
                parts: list[Part] = [Said(event.text)] if event.text else []
            else:
                self._token_ids.append(event.token_id)
                parts = self._parser.push(event.text)
                self._count(parts)
        elif isinstance(event, Finished) and self._parser is not None:
            parts = self._parser.finish()
        else:
            parts = []
        told = [part for part in parts if self._take(part)]
        if isinstance(event, Finished):
            self._end(event)
        return told

    def finish_reason(self, finished: Finished) -> str:
        """The reason of the end in OpenAI's words."""
        called = finished.finish_reason == "stop" and any(call.whole for call in self.calls)
        return "tool_calls" if called else finished.finish_reason

    @property
    def whole_calls(self) -> list[Call]:
        """The calls that a client can obey."""
        return [call for call in self.calls if call.whole]

    def _take(self, part: Part) -> bool:
        """Keeps one part; False for one of a call beyond the only one that is asked for."""
        if not isinstance(part, Said | Reasoned) and part.index > 0 and not self._several:
            self._exact = False
            return False
        match part:
            case Said():
                self.text += part.text
            case Reasoned():
                self.reasoning += part.text
            case CallBegun():
                call_id = f"{self._id_prefix}{secrets.token_hex(_ID_BYTES)}"
                self.calls.append(Call(call_id, part.name))
            case CallArguments():
                self.calls[part.index].arguments += part.text
            case CallEnded():
                self.calls[part.index].whole = True
            case CallBroken():
                self.text += part.text
                self._exact = False
        return True

    def _count(self, parts: Sequence[Part]) -> None:
        """Counts the newest token if it belongs to the reasoning, the mark at its end included."""
        reasoning = self._parsers.reasoning
        if reasoning is not None and (reasoning.reasons or any(isinstance(part, Reasoned) for part in parts)):
            self.reasoning_tokens += 1

    def _end(self, finished: Finished) -> None:
        """Keeps the tokens of an answer that called tools, so that the next prompt has the same ones."""
        if (
            not self.calls
            or not self._exact
            or self.finish_reason(finished) != "tool_calls"
            or finished.stop_string
        ):
            return
        if self._token_ids[-1] in self._eos_token_ids:
            self._token_ids.pop()
        calls = [call_of("tool_calls", call.id, call.name, call.arguments) for call in self.calls]
        self._replays.record(self.text, calls, self._token_ids)
