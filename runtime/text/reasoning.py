"""Reasoning in answers: between marks, or in a channel of its own, before what is meant for the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.runtime.text.tools.harmony import TOKENS as HARMONY_TOKENS
from moorage.runtime.text.tools.harmony import HarmonyParser
from moorage.runtime.text.tools.parts import AnswerParser, Part, Reasoned, Said, overlap

AUTO, NONE = "auto", "none"
_TAIL_TOKENS = 32
"""The last tokens of a prompt, which may begin the reasoning, or begin and end it: marks, and space after them."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """One way in which models write reasoning."""

    name: str
    """The name that vLLM's `--reasoning-parser` has."""
    begin: str
    end: str
    in_template: tuple[str, ...]
    """Texts of which a chat template has one, if its model reasons so."""
    tokens: tuple[str, ...]
    """Marks that are tokens of their own in most models."""
    channels: bool = False
    """Whether answers are messages in channels, as in Harmony."""


def _tags(name: str, begin: str = "<think>", end: str = "</think>") -> ReasoningFormat:
    return ReasoningFormat(name, begin, end, (begin, end), (begin, end))


HARMONY = ReasoningFormat(
    "openai_gptoss", "<|channel|>analysis<|message|>", "<|end|>", ("<|channel|>",), HARMONY_TOKENS, True
)
FORMATS: Mapping[str, ReasoningFormat] = {
    each.name: each
    for each in (
        HARMONY,
        _tags("deepseek_r1"),
        _tags("deepseek_v3"),
        _tags("qwen3"),
        _tags("glm45"),
        _tags("mistral", "[THINK]", "[/THINK]"),
        _tags("kimi_k2", "◁think▷", "◁/think▷"),
    )
}
"""The formats by name; of those that fit a template the first one counts."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a template writes at the beginning of an answer."""

    token_ids: Sequence[int] = ()
    """The last of the prompt, from the mark on that begins the reasoning."""
    is_open: bool = False
    """Whether the answer begins within the reasoning."""


@dataclass(frozen=True, slots=True)
class ReasoningUse:
    """How one model reasons."""

    format: ReasoningFormat
    special_ids: frozenset[int] = frozenset()
    """Marks that are special tokens, and so must be asked for to be seen in a text."""

    def opened_by(self, prompt: Sequence[int], spelling: Callable[[int], str]) -> Opened:
        """How the template has begun the answer to a prompt."""
        tail = ""
        for count in range(1, min(_TAIL_TOKENS, len(prompt)) + 1):
            tail = spelling(prompt[len(prompt) - count]) + tail
            begin, found, rest = tail.partition(self.format.begin)
            if found and not begin and rest.strip() in ("", self.format.end):
                return Opened(prompt[len(prompt) - count :], is_open=not rest.strip())
        return Opened()


class ReasoningParser(Protocol):
    """Splits one answer into reasoning and the parts of the rest."""

    @property
    def reasons(self) -> bool:
        """Whether what comes next is reasoning."""

    def push(self, text: str) -> list[Part]:
        """See `AnswerParser`."""

    def finish(self) -> list[Part]:
        """See `AnswerParser`."""


def reasoning_use(tokenizer: TextTokenizer, name: str = AUTO) -> ReasoningUse | None:
    """How a model reasons: in the format of this name, or as its chat template says; None where it does not."""
    if name == AUTO:
        source = tokenizer.template_source or ""
        fitting = (each for each in FORMATS.values() if any(text in source for text in each.in_template))
        found = next(fitting, None)
    else:
        found = FORMATS.get(name)
    if found is None:
        return None
    ids = tokenizer.added_ids_of(found.tokens)
    return ReasoningUse(found, tokenizer.special_ids.intersection(ids.values()))


def reasoning_parser(
    use: ReasoningUse, rest: AnswerParser | None, *, opened: bool, calls: bool
) -> ReasoningParser:
    """A parser of one answer; `rest` splits what is no reasoning. `opened` says that the prompt has begun it."""
    if use.format.channels:
        return HarmonyParser(calls=calls)
    return TagParser(use.format, rest, opened=opened)


class TagParser:
    """Reasoning between two marks at the beginning of an answer. Space round it is dropped."""

    def __init__(self, format: ReasoningFormat, rest: AnswerParser | None, *, opened: bool) -> None:
        self._format, self._rest = format, rest
        self._held = ""
        self._state = self._in_reasoning if opened else self._at_begin
        self._only_space = True
        """Whether no reasoning came yet, or no text after it."""

    @property
    def reasons(self) -> bool:
        """See `ReasoningParser`."""
        return self._state == self._in_reasoning

    def push(self, text: str) -> list[Part]:
        """See `AnswerParser`."""
        self._held += text
        return self._state()

    def finish(self) -> list[Part]:
        """See `AnswerParser`."""
        held, self._held = self._held, ""
        if self._state == self._in_reasoning:
            said = held.rstrip()
            parts: list[Part] = [Reasoned(said)] if said else []
        else:
            parts = self._said(held)
        return [*parts, *(self._rest.finish() if self._rest is not None else ())]

    def _at_begin(self) -> list[Part]:
        """An answer that does not begin with the mark has no reasoning."""
        begun, mark = self._held.lstrip(), self._format.begin
        if len(begun) < len(mark) and mark.startswith(begun):
            return []
        if begun.startswith(mark):
            self._held, self._state = begun[len(mark) :], self._in_reasoning
        else:
            self._only_space, self._state = False, self._after
        return self._state()

    def _in_reasoning(self) -> list[Part]:
        before, found, after = self._held.partition(self._format.end)
        if not found:
            kept = overlap(self._held, self._format.end)
            before = self._held[: len(self._held) - kept]
        said = before.lstrip() if self._only_space else before
        whole = said.rstrip()
        if found:
            self._held, self._only_space, self._state = after, True, self._after
            return [*([Reasoned(whole)] if whole else []), *self._after()]
        self._only_space = self._only_space and not whole
        # Space at the end may be the last before the mark.
        self._held = self._held[len(before) - len(said) + len(whole) :]
        return [Reasoned(whole)] if whole else []

    def _after(self) -> list[Part]:
        held = self._held.lstrip() if self._only_space else self._held
        self._held, self._only_space = "", self._only_space and not held
        return self._said(held)

    def _said(self, text: str) -> list[Part]:
        if not text:
            return []
        return [Said(text)] if self._rest is None else self._rest.push(text)
