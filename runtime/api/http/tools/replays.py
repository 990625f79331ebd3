"""The tokens of answers that called tools, until the client sends the calls back.

A client gets calls as JSON and sends them on as JSON. Written anew by the chat template they seldom have the tokens
that the model generated, and no KV after them could serve again. So the tokens are kept by the ids of the calls.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.runtime.api.http.prompts import Message

MOST_TOKENS = 8 << 20
"""Most tokens of all answers together; they take four bytes each."""
MOST_ANSWERS = 1 << 16


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    calls: Sequence[Mapping[str, Any]]
    token_ids: array[int]


class Replays:
    """The answers of one server, those used last kept longest."""

    def __init__(self, most_tokens: int = MOST_TOKENS, most_answers: int = MOST_ANSWERS) -> None:
        self._most_tokens, self._most_answers = most_tokens, most_answers
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._num_tokens = 0

    def record(self, text: str, calls: Sequence[Mapping[str, Any]], token_ids: Sequence[int]) -> None:
        """Keeps the tokens of an answer by the id of its first call. `calls` are as chat templates get them."""
        answer = _Answer(text.strip(), calls, array("I", token_ids))
        self._answers[calls[0]["id"]] = answer
        self._num_tokens += len(answer.token_ids)
        while self._num_tokens > self._most_tokens or len(self._answers) > self._most_answers:
            _, dropped = self._answers.popitem(last=False)
            self._num_tokens -= len(dropped.token_ids)

    def said(self, messages: Sequence[Message]) -> dict[int, Sequence[int]]:
        """The tokens of each message that is an answer unchanged, by the message's place."""
        found: dict[int, Sequence[int]] = {}
        for place, message in enumerate(messages):
            calls = message.fields.get("tool_calls")
            answer = self._answers.get(calls[0]["id"]) if calls else None
            if answer is not None and answer.text == message.content.strip() and answer.calls == calls:
                self._answers.move_to_end(calls[0]["id"])
                found[place] = answer.token_ids.tolist()
        return found
