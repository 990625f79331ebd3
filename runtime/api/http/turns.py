"""One answer to one conversation: what the routes of Messages and Responses have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import Request

from moorage.runtime.api import validation
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.bodies import Sent
from moorage.runtime.api.http.generations import Generations
from moorage.runtime.api.http.grammars import with_guides
from moorage.runtime.api.http.service import HttpService
from moorage.runtime.api.http.streams import while_connected
from moorage.runtime.api.http.tools.answers import ToolConversation
from moorage.runtime.api.http.tools.asked import ToolsAsked
from moorage.runtime.api.http.tools.reader import AnswerReader
from moorage.runtime.serving.protocol import Finished, GenerateOptions


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer that was accepted."""

    request_id: str
    model: str
    prompt_tokens: int
    generations: Generations
    tools: ToolsAsked
    reader: AnswerReader
    """Parts the answer into reasoning, text and calls; it also holds the whole of it."""


async def start_turn(
    service: HttpService,
    engine: Engine,
    sent: Sent,
    options: GenerateOptions,
    talk: ToolConversation,
    request_id: str,
    id_prefix: str = "call_",
) -> Turn:
    """Checks the options, makes token ids of the conversation and queues it. Raises why it can't be served."""
    served = engine.model_info()
    params = validation.generate_params(talk.bound(options), served, request_id)
    engine.check_load(params.tenant, params.limits)
    prompt = await while_connected(sent.request, talk.token_ids(engine, sent.upload, service.replays))
    (bound,) = await with_guides(engine, [talk.shown(replace(params, prompt=prompt))])
    asked = talk.after_reasoning(engine, bound)
    generations = await Generations.start(service, engine, [asked])
    reader = talk.reader(engine, service.replays, asked, id_prefix)
    return Turn(request_id, served.name, len(prompt), generations, talk.asked, reader)


async def whole(request: Request, turn: Turn) -> Finished:
    """Reads the answer to its end. Its work ends when the client leaves."""
    async with turn.generations:
        return await while_connected(request, _collected(turn))


async def _collected(turn: Turn) -> Finished:
    finished = None
    async for item in turn.generations.events():
        event = item[1] if item is not None else None
        turn.reader.read(event)
        finished = event if isinstance(event, Finished) else finished
    assert finished is not None
    return finished
