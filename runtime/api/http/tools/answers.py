"""Answers that may call tools: what the engine is asked for, and the parts of what it says."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.prompts import Message, token_ids
from moorage.runtime.api.http.tools.asked import ToolsAsked
from moorage.runtime.api.http.tools.calls import call_of, refuse_calls, with_names
from moorage.runtime.api.http.tools.replays import Replays
from moorage.runtime.api.uploads import Upload
from moorage.runtime.serving.protocol import Event, Finished, GenerateOptions, GenerateParams, Token
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.runtime.text.grammar import Grammar
from moorage.runtime.text.tools.formats import ToolUse
from moorage.runtime.text.tools.parts import CallArguments, CallBegun, CallBroken, CallEnded, Part, Said
from moorage.workers.errors import InvalidRequest
from moorage.workers.token_ids import TokenIds

_ID_BYTES = 12


@dataclass(frozen=True, slots=True)
class ToolConversation:
    """Messages, and tools that the answer may call."""

    messages: Sequence[Message]
    asked: ToolsAsked = ToolsAsked()
    use: ToolUse | None = None
    """How the model calls tools; None where it can't."""

    @classmethod
    def of(cls, engine: Engine, messages: Sequence[Message], asked: ToolsAsked) -> ToolConversation:
        """Raises InvalidRequest for calls and demanded calls where the model's chat template has no place for tools.

        Tools alone are let pass then, as by vLLM: agents send them always, and the model answers with text.
        """
        fields = any(message.fields for message in messages)
        if not asked.tools and not fields:
            return cls(messages)
        use = engine.text.tool_use
        if use is None:
            template = engine.model_info().name
            refuse_calls(messages, template)
            if asked.choice == "required":
                raise InvalidRequest(
                    f"tool_choice: demands a call, and the chat template of {template} has no place for tools; send "
                    "auto, or serve a model that knows tools"
                )
            return cls(messages)
        return cls(with_names(messages), asked, use)

    @property
    def parses(self) -> bool:
        """Whether calls in the answer are told as calls."""
        return self.use is not None and bool(self.asked.tools) and self.asked.choice != "none"

    async def token_ids(self, engine: Engine, upload: Upload, replays: Replays) -> TokenIds:
        """The prompt. Raises InvalidRequest, or what the text process refuses."""
        fields = {place: message.fields for place, message in enumerate(self.messages) if message.fields}
        extra = ChatExtra(self.asked.tools, fields, replays.said(self.messages))
        return await token_ids(engine, upload, self.messages, extra)

    def bound(self, options: GenerateOptions) -> GenerateOptions:
        """Options that demand what `tool_choice` demands. Raises InvalidRequest where they demand more already."""
        demanded = self.asked.demanded()
        if not demanded or self.use is None:
            return options
        if options.grammar is not None:
            raise InvalidRequest("tool_choice: demands a call, and can't stand beside a format of the answer")
        several = self.asked.several and self.asked.only is None
        text = self.use.format.grammar(demanded, self.use.spelled, several=several)
        return replace(options, grammar=Grammar("lark", text))

    def shown(self, params: GenerateParams) -> GenerateParams:
        """Parameters of an answer whose text has the marks of calls."""
        if self.use is None or not self.parses:
            return params
        return replace(params, shown_special=self.use.special_ids)


@dataclass(slots=True)
class Call:
    """A call as far as it was read."""

    id: str
    name: str
    arguments: str = ""
    whole: bool = False


class AnswerReader:
    """Reads one answer, event by event, and keeps what was said and called."""

    def __init__(
        self, talk: ToolConversation, replays: Replays, eos_token_ids: Sequence[int], id_prefix: str = "call_"
    ) -> None:
        self.talk = talk
        functions = [tool["function"] for tool in talk.asked.tools]
        schemas = {function["name"]: function["parameters"] for function in functions}
        self._parser = talk.use.format.parser(schemas) if talk.use is not None and talk.parses else None
        self._replays, self._eos_token_ids, self._id_prefix = replays, eos_token_ids, id_prefix
        self._several = talk.asked.several
        self._token_ids = array("I")
        self._exact = True
        """Whether the client gets all that was generated."""
        self.text = ""
        """Text that belongs to no call."""
        self.calls: list[Call] = []
        """With those that are not whole, of which a stream may have told a part."""

    def read(self, event: Event | None) -> list[Part]:
        """The parts that an event brings."""
        if isinstance(event, Token):
            if self._parser is None:
                parts: list[Part] = [Said(event.text)] if event.text else []
            else:
                self._token_ids.append(event.token_id)
                parts = self._parser.push(event.text)
        elif isinstance(event, Finished) and self._parser is not None:
            parts = self._parser.finish()
        else:
            parts = []
        told = [part for part in parts if self._take(part)]
        if isinstance(event, Finished):
            self._end(event)
        return told

    def reason(self, finished: Finished) -> str:
        """The reason of the end in OpenAI's words."""
        called = finished.finish_reason == "stop" and any(call.whole for call in self.calls)
        return "tool_calls" if called else finished.finish_reason

    @property
    def whole_calls(self) -> list[Call]:
        """The calls that a client can obey."""
        return [call for call in self.calls if call.whole]

    def _take(self, part: Part) -> bool:
        """Keeps one part; False for one of a call beyond the only one that is asked for."""
        if not isinstance(part, Said) and part.index > 0 and not self._several:
            self._exact = False
            return False
        match part:
            case Said():
                self.text += part.text
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

    def _end(self, finished: Finished) -> None:
        """Keeps the tokens of an answer that called tools, so that the next prompt has the same ones."""
        if not self.calls or not self._exact or self.reason(finished) != "tool_calls" or finished.stop_string:
            return
        if self._token_ids[-1] in self._eos_token_ids:
            self._token_ids.pop()
        calls = [call_of("tool_calls", call.id, call.name, call.arguments) for call in self.calls]
        self._replays.record(self.text, calls, self._token_ids)
