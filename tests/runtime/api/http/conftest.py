"""A real HTTP server on a free port with the toy engine behind it, and the official clients of its APIs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from moorage.runtime.api.http.server import HttpServer
from tests.toy_engine import ToyEngine


@dataclass
class Http:
    """What a test talks to."""

    server: HttpServer
    engine: ToyEngine
    client: httpx2.AsyncClient
    openai: AsyncOpenAI

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of one answer."""
        response = await self.client.post(path, json=body)
        return response.status_code, response.json()


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    server, engine = HttpServer(), ToyEngine()
    address = await server.start("127.0.0.1:0")
    server.serve(engine)
    url = f"http://{address}"
    async with (
        httpx2.AsyncClient(base_url=url) as client,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai,
    ):
        yield Http(server, engine, client, openai)
    await server.stop()
