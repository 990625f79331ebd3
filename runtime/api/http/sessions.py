"""/v1/sessions: the sessions of the caller's tenant, as `runtime session` shows them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from moorage.runtime.api.access.keys import tenant
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.validation import session_name
from moorage.runtime.serving.sessions.records import SessionInfo
from moorage.workers.errors import InvalidRequest, NotFound

router = APIRouter(tags=["sessions"])


class NewName(BaseModel):
    """The name of a session that is opened."""

    model_config = ConfigDict(extra="forbid")

    name: str


class Change(BaseModel):
    """What a session is to be."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, description="Another name.")
    pinned: bool | None = Field(None, description="Whether it is kept when others need its memory.")


@router.get("/v1/sessions")
async def sessions(request: Request) -> dict[str, Any]:
    """Every session, the longest unused first."""
    found = await service_of(request).ready().sessions.list(tenant.get())
    return {"object": "list", "data": [_shown(session) for session in found]}


@router.post("/v1/sessions/{name:path}/fork", openapi_extra=body_of(NewName))
async def fork(request: Request, name: str) -> dict[str, Any]:
    """Opens a session that shares all full blocks of another one, and goes its own way after them."""
    async with service_of(request).receiving(request) as (engine, sent):
        asked = await sent.read(NewName)
        forked = await engine.sessions.fork(session_name(name), session_name(asked.name), tenant.get())
    return _shown(forked)


@router.post("/v1/sessions/{name:path}/save")
async def save(request: Request, name: str) -> dict[str, Any]:
    """Writes a session to files, which outlive the server."""
    return _shown(await service_of(request).ready().sessions.save(session_name(name), tenant.get()))


@router.post("/v1/sessions/{name:path}/load")
async def load(request: Request, name: str) -> dict[str, Any]:
    """Brings a saved session back to memory."""
    return _shown(await service_of(request).ready().sessions.load(session_name(name), tenant.get()))


@router.get("/v1/sessions/{name:path}")
async def session(request: Request, name: str) -> dict[str, Any]:
    """One session."""
    found = await service_of(request).ready().sessions.list(tenant.get())
    for one in found:
        if one.name == name:
            return _shown(one)
    raise NotFound("session: no such name is held here; GET /v1/sessions lists those that are")


@router.patch("/v1/sessions/{name:path}", openapi_extra=body_of(Change))
async def change(request: Request, name: str) -> dict[str, Any]:
    """Renames a session, or pins it."""
    async with service_of(request).receiving(request) as (engine, sent):
        asked, held = await sent.read(Change), session_name(name)
        if asked.pinned is None and asked.name is None:
            raise InvalidRequest("body: changes nothing; send name, pinned or both")
        changed = None
        if asked.pinned is not None:
            changed = await engine.sessions.pin(held, asked.pinned, tenant.get())
        if asked.name is not None:
            changed = await engine.sessions.rename(held, session_name(asked.name), tenant.get())
    assert changed is not None
    return _shown(changed)


@router.delete("/v1/sessions/{name:path}")
async def delete(request: Request, name: str) -> dict[str, Any]:
    """Drops the KV of a session."""
    await service_of(request).ready().sessions.delete(session_name(name), tenant.get())
    return {"object": "session", "name": name, "deleted": True}


def _shown(session: SessionInfo) -> dict[str, Any]:
    fields = asdict(session)
    del fields["tenant"]
    return {"object": "session", **fields}
