"""Answers that may reason and call tools: what the engine is asked for, and how the answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.prompts import Message, token_ids
from moorage.runtime.api.http.reasoning import without_reasoning
from moorage.runtime.api.http.tools.asked import ToolsAsked
from moorage.runtime.api.http.tools.calls import refuse_calls, with_names
from moorage.runtime.api.http.tools.reader import AnswerReader, Parsers
from moorage.runtime.api.http.tools.replays import Replays
from moorage.runtime.api.uploads import Upload
from moorage.runtime.serving.protocol import GenerateOptions, GenerateParams
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.runtime.text.delayed_guide import DelayedGuide
from moorage.runtime.text.grammar import Grammar
from moorage.runtime.text.reasoning import ReasoningUse, reasoning_parser
from moorage.runtime.text.tools.formats import ToolUse
from moorage.workers.errors import InvalidRequest
from moorage.workers.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class ToolConversation:
    """Messages, and tools that the answer may call."""

    messages: Sequence[Message]
    asked: ToolsAsked = ToolsAsked()
    use: ToolUse | None = None
    """How the model calls tools; None where it can't."""
    reasoning: ReasoningUse | None = None
    """How the model reasons; None where that is not known."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What else the chat template gets, such as `enable_thinking`."""

    @classmethod
    def of(
        cls,
        engine: Engine,
        messages: Sequence[Message],
        asked: ToolsAsked,
        values: Mapping[str, Any] | None = None,
    ) -> ToolConversation:
        """Raises InvalidRequest for calls and demanded calls where the model's chat template has no place for tools.

        Tools alone are let pass then, as by vLLM: agents send them always, and the model answers with text.
        """
        reasoning = engine.text.reasoning
        if reasoning is None:
            messages = without_reasoning(messages)
        plain = cls(messages, reasoning=reasoning, values=values or {})
        fields = any(message.fields for message in messages)
        if not asked.tools and not fields:
            return plain
        use = engine.text.tool_use
        if use is None:
            template = engine.model_info().name
            refuse_calls(messages, template)
            if asked.choice == "required":
                raise InvalidRequest(
                    f"tool_choice: demands a call, and the chat template of {template} has no place for tools; send "
                    "auto, or serve a model that knows tools"
                )
            return plain
        return replace(plain, messages=with_names(messages), asked=asked, use=use)

    @property
    def parses(self) -> bool:
        """Whether calls in the answer are told as calls."""
        return self.use is not None and bool(self.asked.tools) and self.asked.choice != "none"

    async def token_ids(self, engine: Engine, upload: Upload, replays: Replays) -> TokenIds:
        """The prompt. Raises InvalidRequest, or what the text process refuses."""
        fields = {place: message.fields for place, message in enumerate(self.messages) if message.fields}
        extra = ChatExtra(self.asked.tools, fields, replays.said(self.messages), self.values)
        return await token_ids(engine, upload, self.messages, extra)

    def bound(self, options: GenerateOptions) -> GenerateOptions:
        """Options that demand what `tool_choice` demands. Raises InvalidRequest where they demand more already."""
        demanded = self.asked.demanded()
        if not demanded or self.use is None:
            return options
        if options.grammar is not None:
            raise InvalidRequest(
                "tool_choice: demands a call, and can't stand beside a format of the answer; send one of the two"
            )
        several = self.asked.several and self.asked.only is None
        text = self.use.format.grammar(demanded, self.use.spelled, several=several)
        return replace(options, grammar=Grammar("lark", text))

    def shown(self, params: GenerateParams) -> GenerateParams:
        """Parameters of an answer whose text has the marks of reasoning and calls."""
        shown = frozenset[int]() if self.reasoning is None else self.reasoning.special_ids
        if self.use is not None and self.parses:
            shown |= self.use.special_ids
        return replace(params, shown_special=shown) if shown else params

    def after_reasoning(self, engine: Engine, params: GenerateParams) -> GenerateParams:
        """Parameters of an answer whose grammar holds after its reasoning, if its prompt has begun one."""
        if self.reasoning is None or params.guide is None:
            return params
        spelling = engine.text.spelling
        if not self.reasoning.opened_by(params.prompt, spelling).is_open:
            return params
        return replace(params, guide=DelayedGuide(params.guide, self.reasoning.format.end, spelling))

    def reader(
        self,
        engine: Engine,
        replays: Replays,
        params: GenerateParams,
        id_prefix: str = "call_",
    ) -> AnswerReader:
        """A reader of the answer to `params`."""
        functions = [tool["function"] for tool in self.asked.tools]
        schemas = {function["name"]: function["parameters"] for function in functions}
        calls = self.use.format.parser(schemas) if self.use is not None and self.parses else None
        parsers, eos = Parsers(calls), engine.model_info().eos_token_ids
        if self.reasoning is not None:
            opened = self.reasoning.opened_by(params.prompt, engine.text.spelling)
            reasoning = reasoning_parser(self.reasoning, calls, opened=opened.is_open, calls=self.parses)
            parsers = Parsers(calls, reasoning, opened.token_ids)
        return AnswerReader(parsers, replays, eos, id_prefix, several=self.asked.several)
