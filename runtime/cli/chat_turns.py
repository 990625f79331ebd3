"""The turns of a conversation, and how they become the next prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moorage.client import Client, GenerateOptions, GenerateStream, Token
from moorage.workers.errors import InvalidRequest


@dataclass(slots=True)
class Answer:
    """What of an answer has come so far."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""

    def add(self, token: Token) -> None:
        """Takes the next token."""
        self.token_ids.append(token.token_id)
        self.text += token.text


class Turns(Protocol):
    """All that was said, in one of the two forms below."""

    @property
    def num_questions(self) -> int:
        """How many turns of the user are remembered."""

    def ask(self, client: Client, options: GenerateOptions, text: str) -> GenerateStream:
        """Sends all that was said and `text`; the server reads only what it does not hold."""

    def remember(self, text: str, answer: Answer) -> None:
        """Adds a question and its answer."""

    def forget(self) -> None:
        """Goes back to the beginning; what came before the first turn stays."""

    def as_json(self) -> Any:
        """What `load` takes."""

    def load(self, value: object) -> None:
        """Takes the place of all that was said. Raises InvalidRequest for what `as_json` never gives."""


class Messages:
    """Turns that the model's chat template lays out."""

    def __init__(self, system: str | None) -> None:
        self._messages = _system(system)

    @property
    def num_questions(self) -> int:
        """How many turns of the user are remembered."""
        return sum(message["role"] == "user" for message in self._messages)

    def ask(self, client: Client, options: GenerateOptions, text: str) -> GenerateStream:
        """Sends the whole conversation and `text` as the user's."""
        return client.generate([*self._messages, {"role": "user", "content": text}], **options)

    def remember(self, text: str, answer: Answer) -> None:
        """Adds two messages."""
        self._messages.append({"role": "user", "content": text})
        self._messages.append({"role": "assistant", "content": answer.text})

    def forget(self) -> None:
        """Keeps the system message alone."""
        self._messages = [message for message in self._messages[:1] if message["role"] == "system"]

    def as_json(self) -> list[dict[str, str]]:
        """The messages, as `runtime generate --messages` takes them too."""
        return self._messages

    def load(self, value: object) -> None:
        """Takes a list of messages."""
        self._messages = chat_messages(value)

    def set_system(self, system: str) -> None:
        """Puts `system` in the place of the system message, or before all others."""
        rest = (
            self._messages[1:]
            if self._messages[:1] and self._messages[0]["role"] == "system"
            else self._messages
        )
        self._messages = [*_system(system), *rest]


class Continuation:
    """Turns one after the other without a template, as token ids, for a model that has none."""

    def __init__(self, system: str | None) -> None:
        self._system = system or ""
        self._ids: list[int] = []
        self._asked: list[int] = []
        self.num_questions = 0

    def ask(self, client: Client, options: GenerateOptions, text: str) -> GenerateStream:
        """Sends `text` after all that was said and generated before."""
        before = self._ids or client.tokenize(self._system)
        self._asked = before + client.tokenize(text, add_special_tokens=False)
        return client.generate(self._asked, **options)

    def remember(self, text: str, answer: Answer) -> None:  # noqa: ARG002  # its ids are those last asked
        """Adds the ids that were asked last and those of the answer."""
        self._ids = self._asked + answer.token_ids
        self.num_questions += 1

    def forget(self) -> None:
        """Begins again with the system text."""
        self._ids, self.num_questions = [], 0

    def as_json(self) -> dict[str, object]:
        """The token ids and how many questions they hold."""
        return {"token_ids": self._ids, "num_questions": self.num_questions}

    def load(self, value: object) -> None:
        """Takes token ids."""
        ids = value.get("token_ids") if isinstance(value, Mapping) else None
        if not isinstance(ids, list) or not all(type(item) is int for item in ids):
            raise InvalidRequest("is no conversation of `chat --raw`; leave --raw out")
        self._ids, self.num_questions = ids, int(value["num_questions"])  # type: ignore[index]


def chat_messages(value: object) -> list[dict[str, str]]:
    """Messages with a role and a content each. Raises InvalidRequest for anything else."""
    if isinstance(value, Mapping) and "token_ids" in value:
        raise InvalidRequest("is a conversation of `chat --raw`; add --raw")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InvalidRequest('must be a JSON list of messages, {"role": …, "content": …}')
    messages = []
    for place, message in enumerate(value):
        fields = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else ()
        if not fields or not all(isinstance(field, str) for field in fields) or not fields[0]:
            raise InvalidRequest(f'message {place + 1}: must have a "role" and a "content" of text')
        messages.append({"role": fields[0], "content": fields[1]})
    return messages


def _system(text: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}] if text else []
