"""A real HTTP server on a free port with the toy engine behind it, and the official clients of its APIs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic
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
    anthropic: AsyncAnthropic

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of one answer."""
        response = await self.client.post(path, json=body)
        return response.status_code, response.json()

    async def events(self, path: str, body: Any) -> list[dict[str, Any]]:
        """The JSON of each event of a stream, which must name its events as their JSON does."""
        response = await self.client.post(path, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        found = []
        for frame in response.text.strip().split("\n\n"):
            name, data = frame.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
        return found


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    server, engine = HttpServer(), ToyEngine()
    address = await server.start("127.0.0.1:0")
    server.serve(engine)
    url = f"http://{address}"
    async with (
        httpx2.AsyncClient(base_url=url) as client,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai,
        AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as anthropic,
    ):
        yield Http(server, engine, client, openai, anthropic)
    await server.stop()
