"""From the prompts in a body to token ids, by the same collector that gRPC's prompts go through."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.prompts import MAX_PIECE_BYTES, PromptCollector
from moorage.runtime.api.uploads import Upload
from moorage.runtime.serving.protocol import MessagePiece, PromptPiece
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.runtime.text.jobs import NO_EXTRA
from moorage.workers.errors import InvalidRequest
from moorage.workers.token_ids import TokenIds

_IDS_AT_ONCE = MAX_PIECE_BYTES // 4


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else chat templates get of it, such as `tool_calls`."""


Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or a conversation."""


async def token_ids(engine: Engine, upload: Upload, prompt: Prompt, extra: ChatExtra = NO_EXTRA) -> TokenIds:
    """Token ids of one prompt. Raises InvalidRequest, or what the text process refuses."""
    with PromptCollector(engine, upload, chat=True) as collector:
        collector.set_extra(extra)
        for piece in _pieces(prompt):
            collector.add(piece)
            await asyncio.sleep(0)  # A million ids at once would hold up every stream.
        return await collector.token_ids()


def listed_ids(field: str, values: Sequence[object]) -> list[int]:
    """A list that should hold token ids. Raises InvalidRequest with the first entry that is none."""
    for place, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            raise InvalidRequest(f"{field}[{place}]: is no token id; send whole numbers from 0 on")
    return list(values)  # type: ignore[arg-type]


def _pieces(prompt: Prompt) -> Iterator[PromptPiece]:
    if isinstance(prompt, str):
        for part in _parts(prompt):
            yield PromptPiece(part, len(part))
        return
    for start in range(0, len(prompt), _IDS_AT_ONCE):
        items = prompt[start : start + _IDS_AT_ONCE]
        if isinstance(items[0], Message):
            for message in items:
                assert isinstance(message, Message)
                for number, part in enumerate(_parts(message.content)):
                    yield PromptPiece(MessagePiece("" if number else message.role, part), len(part))
        else:
            yield PromptPiece(items, _IDS_AT_ONCE * 4)  # type: ignore[arg-type]


def _parts(text: str) -> Iterator[bytes]:
    """UTF-8 of a text in pieces; one empty piece for an empty text."""
    data = text.encode()
    for start in range(0, max(1, len(data)), MAX_PIECE_BYTES):
        yield data[start : start + MAX_PIECE_BYTES]
