"""The methods of `moorage.v1.Moorage`: they validate what was sent, call the engine, and send its events."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import structlog

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.runtime.api import validation
from moorage.runtime.api.engine import Engine, Events
from moorage.runtime.api.grpc import codec
from moorage.runtime.api.grpc.failures import reported
from moorage.runtime.api.grpc.session_methods import SessionMethods
from moorage.runtime.api.guides import with_guide
from moorage.runtime.api.prompts import PromptCollector
from moorage.runtime.api.uploads import Upload, client_of
from moorage.runtime.serving.protocol import (
    Finished,
    GenerateParams,
    Progress,
    PromptLogprobs,
    ScoreParams,
    Token,
)
from moorage.runtime.text.body import Body
from moorage.workers.errors import DeadlineExceeded, InvalidRequest
from moorage.workers.token_ids import TokenIds

log = structlog.get_logger()

MOST_UNREAD_S = 60.0
"""Time for a client to read on when the buffers of the connection are full."""
_IDS_AT_ONCE = 50_000
"""A million ids at once would block the event loop, and so all streams, for a tenth of a second."""

Context = grpc.aio.ServicerContext[Any, Any]
Requests = AsyncIterator[Any]


class MoorageService(SessionMethods):
    """Answers UNAVAILABLE until `engine` is set, and again once `stopping` is."""

    async def Generate(self, request_iterator: Requests, context: Context) -> None:  # noqa: N802
        """Checks parameters and prompt, then streams the engine's events."""
        async with reported(context, request_iterator):
            engine = self.ready()
            with self.counted():
                with self.uploads.open(client_of(context.peer())) as upload:
                    params = await _generate_params(upload, request_iterator, engine)
                await engine.sessions.wake(params.session, params.tenant)
                async with aclosing(engine.generate(params)) as events:
                    accepted = _accepted("generate", params.request_id, params.prompt)
                    await _send(context, pb.GenerateResponse(accepted=accepted), events)
                    async for event in events:
                        if isinstance(event, Progress | Token | Finished):
                            await _send(context, codec.generate_response(event), events)

    async def Score(self, request_iterator: Requests, context: Context) -> None:  # noqa: N802
        """Checks the text, then streams its log-probabilities."""
        async with reported(context, request_iterator):
            engine = self.ready()
            with self.counted():
                with self.uploads.open(client_of(context.peer())) as upload:
                    params = await _score_params(upload, request_iterator, engine)
                async with aclosing(engine.score(params)) as events:
                    accepted = _accepted("score", params.request_id, params.tokens)
                    await _send(context, pb.ScoreResponse(accepted=accepted), events)
                    async for event in events:
                        if isinstance(event, Progress | PromptLogprobs | Finished):
                            await _send(context, codec.score_response(event), events)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        """Token ids of a text."""
        async with reported(context):
            engine = self.ready()
            validation.model_name(request.model, engine.model_info())
            special = request.add_special_tokens if request.HasField("add_special_tokens") else True
            with self._complete_upload(context, len(request.text)), Body(request.text) as text:
                ids = await engine.text.encode("text", text, add_special_tokens=special)
            response = pb.TokenizeResponse()
            for start in range(0, len(ids), _IDS_AT_ONCE):
                response.token_ids.extend(ids[start : start + _IDS_AT_ONCE])
                await asyncio.sleep(0)
            return response

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """Text of token ids."""
        async with reported(context):
            engine = self.ready()
            validation.model_name(request.model, engine.model_info())
            validation.token_ids(request.token_ids, engine.model_info().vocab_size)
            with self._complete_upload(context, request.ByteSize()):
                text = await engine.text.decode(request.token_ids)
            return pb.DetokenizeResponse(text=text)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002, N802
        """The one served model."""
        async with reported(context):
            return pb.ListModelsResponse(models=[codec.model(self.ready().model_info())])

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: ARG002, N802
        """A snapshot of the cluster; the only method that answers while it stops."""
        async with reported(context):
            return codec.status_response(await self.status())

    @contextmanager
    def _complete_upload(self, context: Context, num_bytes: int) -> Iterator[None]:
        """Counts a text that came in one message while it is worked on."""
        with self.uploads.open(client_of(context.peer())) as upload:
            upload.complete = True
            upload.grow(num_bytes)
            yield


async def _generate_params(upload: Upload, requests: Requests, engine: Engine) -> GenerateParams:
    request_id = _new_request_id()
    asked = codec.read_generate_options(await _parameters(upload, requests))
    params = validation.generate_params(asked, engine.model_info(), request_id)
    engine.check_load(params.tenant, params.limits)
    with PromptCollector(engine, upload, chat=True, parse_special=asked.parse_special) as prompt:
        params = dataclasses.replace(params, prompt=await _prompt(upload, requests, prompt))
    return await with_guide(engine, params)


async def _score_params(upload: Upload, requests: Requests, engine: Engine) -> ScoreParams:
    request_id = _new_request_id()
    asked = codec.read_score_options(await _parameters(upload, requests))
    params = validation.score_params(asked, engine.model_info(), request_id)
    engine.check_load(params.tenant, params.limits)
    with PromptCollector(engine, upload, chat=False) as prompt:
        return dataclasses.replace(params, tokens=await _prompt(upload, requests, prompt))


async def _parameters(upload: Upload, requests: Requests) -> Any:
    """The first message of a stream, which must carry the parameters."""
    request = await upload.next(requests)
    if request is None or request.WhichOneof("part") != "parameters":
        raise InvalidRequest("parameters: are missing; send them as the first message of the stream")
    return request.parameters


async def _prompt(upload: Upload, requests: Requests, prompt: PromptCollector) -> TokenIds:
    """The token ids of all later messages, until the client half-closes."""
    while (request := await upload.next(requests)) is not None:
        if request.WhichOneof("part") != "piece":
            raise InvalidRequest("piece: is missing; after the parameters send only pieces of the prompt")
        prompt.add(codec.read_piece(request.piece))
    return await prompt.token_ids()


async def _send(context: Context, response: Any, events: Events) -> None:
    """Writes one message. Ends the request when its client has not read for so long that the message can't be sent.

    Raises DeadlineExceeded then, which the client gets as soon as it reads on.
    """
    writing = asyncio.ensure_future(context.write(response))
    try:
        async with asyncio.timeout(MOST_UNREAD_S):
            await asyncio.shield(writing)
        return
    except TimeoutError:
        log.warning("the client reads nothing, so its request ends", waited_s=MOST_UNREAD_S)
        await events.aclose()
        await writing
    finally:
        writing.cancel()
    raise DeadlineExceeded(
        f"the client read nothing for {MOST_UNREAD_S:g} s, so the request ended; read answers as they come"
    )


def _new_request_id() -> str:
    """A fresh id, which every line of the log has that this handler writes."""
    request_id = secrets.token_hex(6)
    structlog.contextvars.bind_contextvars(request_id=request_id)
    return request_id


def _accepted(method: str, request_id: str, prompt: Sequence[int]) -> pb.Accepted:
    log.info("request accepted", method=method, prompt_tokens=len(prompt))
    return pb.Accepted(request_id=request_id, prompt_tokens=len(prompt))
