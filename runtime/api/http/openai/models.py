"""GET /v1/models, and tokenising as vLLM and llama.cpp have it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from moorage.runtime.api import validation
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.messages import ChatMessage, conversation
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.prompts import listed_ids, token_ids
from moorage.runtime.api.http.service import HttpService, service_of
from moorage.runtime.api.http.streams import while_connected
from moorage.runtime.api.http.unsupported import refuse_unsupported
from moorage.runtime.api.uploads import Upload
from moorage.runtime.text.body import Body
from moorage.workers.errors import InvalidRequest

router = APIRouter(tags=["OpenAI"])


class TokenizeRequest(BaseModel):
    """A text, or a conversation, to be turned into token ids. `content` is llama.cpp's word for `prompt`."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """Token ids to be turned into text."""

    model: str | None = None
    tokens: list[Any]


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one served model."""
    service = service_of(request)
    return {"object": "list", "data": [_model(service, service.ready())]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """The served model by its name."""
    service = service_of(request)
    engine = service.ready()
    validation.model_name(name, engine.model_info())
    return _model(service, engine)


@router.post("/tokenize", openapi_extra=body_of(TokenizeRequest))
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(request: Request) -> Response:
    """Token ids of a text or a conversation."""
    async with service_of(request).receiving(request) as (engine, sent):
        asked = await sent.read(TokenizeRequest)
        refuse_unsupported(asked.model_extra)
        validation.model_name(asked.model or "", engine.model_info())
        ids = list(await while_connected(request, _tokenized(engine, sent.upload, asked)))
    limit = engine.model_info().max_seq_len
    strings = list(map(engine.text.spelling, ids)) if asked.return_token_strs else None
    return JSONResponse({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": strings})


@router.post("/detokenize", openapi_extra=body_of(DetokenizeRequest))
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(request: Request) -> Response:
    """Text of token ids."""
    async with service_of(request).receiving(request) as (engine, sent):
        asked = await sent.read(DetokenizeRequest)
        validation.model_name(asked.model or "", engine.model_info())
        ids = listed_ids("tokens", asked.tokens)
        validation.token_ids(ids, engine.model_info().vocab_size)
        text = await while_connected(request, engine.text.decode(ids))
    return JSONResponse({"prompt": text, "content": text})


async def _tokenized(engine: Engine, upload: Upload, asked: TokenizeRequest) -> list[int]:
    text = asked.prompt if asked.prompt is not None else asked.content
    if (text is None) == (asked.messages is None):
        raise InvalidRequest("prompt: send either prompt or messages")
    if asked.messages is not None:
        return list(await token_ids(engine, upload, conversation(asked.messages)))
    special = True if asked.add_special_tokens is None else asked.add_special_tokens
    with Body((text or "").encode()) as body:
        return list(await engine.text.encode("prompt", body, add_special_tokens=special))


def _model(service: HttpService, engine: Engine) -> dict[str, Any]:
    info = engine.model_info()
    return {
        "id": info.name,
        "object": "model",
        "created": service.started_s,
        "owned_by": "moorage",
        "root": info.name,
        "max_model_len": info.max_seq_len,
        "moorage": {"family": info.family, "dtype": info.dtype, "preset": info.preset},
    }
