"""One answer to one conversation: what the routes of Messages and Responses have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastapi import Request

from moorage.runtime.api import validation
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.bodies import Sent
from moorage.runtime.api.http.generations import Generations
from moorage.runtime.api.http.grammars import with_guides
from moorage.runtime.api.http.prompts import Message, token_ids
from moorage.runtime.api.http.service import HttpService
from moorage.runtime.api.http.streams import while_connected
from moorage.runtime.serving.protocol import Finished, GenerateOptions, Token, Usage


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer that was accepted."""

    request_id: str
    model: str
    prompt_tokens: int
    generations: Generations


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer."""

    text: str
    finished: Finished

    @property
    def usage(self) -> Usage:
        """The record of the request."""
        return self.finished.usage


async def start_turn(
    service: HttpService,
    engine: Engine,
    sent: Sent,
    options: GenerateOptions,
    messages: Sequence[Message],
    request_id: str,
) -> Turn:
    """Checks the options, makes token ids of the conversation and queues it. Raises why it can't be served."""
    served = engine.model_info()
    params = validation.generate_params(options, served, request_id)
    prompt = await while_connected(sent.request, token_ids(engine, sent.upload, messages))
    asked = await with_guides(engine, [replace(params, prompt=prompt)])
    generations = await Generations.start(service, engine, asked)
    return Turn(request_id, served.name, len(prompt), generations)


async def whole(request: Request, turn: Turn) -> Said:
    """The answer once it is complete. Its work ends when the client leaves."""
    async with turn.generations:
        return await while_connected(request, _collected(turn))


async def _collected(turn: Turn) -> Said:
    texts, finished = [], None
    async for item in turn.generations.events():
        if item is not None and isinstance(item[1], Token):
            texts.append(item[1].text)
        elif item is not None and isinstance(item[1], Finished):
            finished = item[1]
    assert finished is not None
    return Said("".join(texts), finished)
