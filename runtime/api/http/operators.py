"""Routes for those who run the server: whether it lives, whether it can serve, and its version."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.service import service_of
from moorage.runtime.serving.protocol import Finished, GenerateParams
from moorage.workers.errors import ResourceExhausted, Unavailable

router = APIRouter(tags=["operators"])

FRESH_S = 10.0
"""How long a forward step that succeeded says that the next one will."""
STEP_TIMEOUT_S = 30.0


@router.get("/health")
async def health() -> dict[str, str]:
    """The process lives; nothing is said about the cluster."""
    return {"status": "ok"}


@router.get("/ping", include_in_schema=False)
async def ping() -> dict[str, str]:
    """Answers as `/health` does."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, Any]:
    """The cluster serves: it has no problem, and a forward step succeeded lately or is under way."""
    engine = service_of(request).ready()
    engine.health.check()
    await request.app.state.readiness.check(engine)
    return {"status": "ready", "model": engine.model_info().name}


@router.get("/status")
async def status(request: Request) -> dict[str, Any]:
    """A snapshot of the cluster: load, memory, processes, and why requests wait."""
    found = asdict(await service_of(request).status())
    return {"ready": found["state"] == "serving", **found}


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of the server."""
    return {"version": metadata.version("moorage")}


class Readiness:
    """Generates one token when nobody else does, at most once in `FRESH_S`, however many ask."""

    def __init__(self) -> None:
        self._succeeded_s: float | None = None
        self._probe: asyncio.Task[None] | None = None

    async def check(self, engine: Engine) -> None:
        """Raises Unavailable when no forward step succeeds."""
        if self._succeeded_s is not None and time.monotonic() - self._succeeded_s < FRESH_S:
            return
        if (await engine.status()).running:  # Their steps fail under a problem of the cluster.
            return
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._step(engine))
        await asyncio.shield(self._probe)

    async def _step(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                async for event in engine.generate(GenerateParams((0,), max_new_tokens=1)):
                    if isinstance(event, Finished):
                        self._succeeded_s = time.monotonic()
        except ResourceExhausted:
            return  # It is busy, which is no reason to send its clients elsewhere for good.
        except TimeoutError:
            raise Unavailable(
                f"no forward step ended within {STEP_TIMEOUT_S:g} s; look in the server's log"
            ) from None
