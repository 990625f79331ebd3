"""Clients that leave in every phase of a request, by gRPC and by HTTP: their work ends, and nothing stays held.

MOORAGE_FUZZ_CALLS and MOORAGE_FUZZ_SEED give the tests other numbers. With `-s` they print how far each client came.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

import httpx2
import pytest

from moorage.client import AsyncClient, Progress, Token
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.api.http.server import HttpServer
from moorage.runtime.serving.coordinator import Coordinator
from tests.runtime.api.http.real_server import coordinating

pytestmark = pytest.mark.slow

NUM_CALLS = int(os.environ.get("MOORAGE_FUZZ_CALLS", "200"))
SEED = int(os.environ.get("MOORAGE_FUZZ_SEED", "1"))
AT_ONCE = 6
NEW_TOKENS = 10
PHASES = ("before", "prefill", "decode", "end")
"""The latest that a client has seen when it leaves: no event, progress, tokens, all tokens."""


@dataclass(frozen=True)
class Leaving:
    """A request, and when its client leaves."""

    prompt: list[int]
    session: str | None
    phase: str
    events: int
    """How many events of the phase it reads."""
    after_s: float
    """How long it still waits then."""


Ask = Callable[[str, Leaving], AsyncIterator[str]]


async def by_grpc(address: str, one: Leaving) -> AsyncIterator[str]:
    """The phase that each event belongs to."""
    async with AsyncClient(address) as client:
        options = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True, "session": one.session}
        async with client.generate(one.prompt, **options) as stream:  # type: ignore[arg-type]
            async for event in stream:
                if isinstance(event, Token):
                    yield "end" if event.index == NEW_TOKENS - 1 else "decode"
                elif isinstance(event, Progress):
                    yield "prefill"


async def by_http(address: str, one: Leaving) -> AsyncIterator[str]:
    """As `by_grpc`."""
    body = {"prompt": one.prompt, "max_tokens": NEW_TOKENS, "ignore_eos": True, "logprobs": 1}
    body |= {"stream": True, "return_progress": True, "session_id": one.session}
    tokens = 0
    async with (
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
        client.stream("POST", "/v1/completions", json=body, timeout=60) as response,
    ):
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if "prompt_progress" in json.loads(line.removeprefix("data: ")):
                yield "prefill"
            else:
                tokens += 1
                yield "end" if tokens >= NEW_TOKENS else "decode"


@dataclass
class Real:
    """Both servers before one real engine."""

    grpc: str
    http: str
    coordinator: Coordinator

    async def held(self) -> tuple[int, int]:
        """Sessions and bytes that are held once no request runs."""
        async with asyncio.timeout(60):
            while (status := await self.coordinator.status()).running or status.waiting:
                await asyncio.sleep(0.01)
        assert (status.failed_steps_total, status.state) == (0, "serving")
        actors = status.kv_actors
        return sum(actor.num_sessions for actor in actors), sum(actor.used_bytes for actor in actors)


@asynccontextmanager
async def real() -> AsyncIterator[Real]:
    async with coordinating() as coordinator:
        servers = ApiServer(), HttpServer()
        addresses = [await server.start("127.0.0.1:0") for server in servers]
        await servers[0].serve(coordinator)
        servers[1].serve(coordinator)
        yield Real(addresses[0], addresses[1], coordinator)
        await coordinator.close()
        for server in servers:
            await server.stop()


def drawn(draw: random.Random) -> Leaving:
    """Each phase as often as the others, and any moment within it."""
    phase = draw.choice(PHASES)
    num_tokens = draw.choice((600, 900) if phase == "prefill" else (5, 40, 200))
    return Leaving(
        prompt=[draw.randrange(3, 500) for _ in range(num_tokens)],
        session=draw.choice((None, None, None, "a", "b")),
        phase=phase,
        events=draw.randrange(1, {"prefill": 3, "decode": NEW_TOKENS}.get(phase, 2)),
        after_s=draw.choice((0.0, 0.001, 0.05)) * draw.random(),
    )


async def leave(events: AsyncIterator[str], one: Leaving) -> str:
    """Reads as far as the client stays, and returns the phase that it has seen."""
    seen, left = "before", one.events
    with suppress(TimeoutError):
        async with asyncio.timeout(one.after_s if one.phase == "before" else None), aclosing(events):  # type: ignore[type-var]
            async for phase in events:
                seen, left = phase, left - (phase == one.phase)
                if not left:
                    await asyncio.sleep(one.after_s)
                    break
    return seen


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_clients_that_leave_at_any_time_leak_nothing(protocol: str) -> None:
    draw, calls = random.Random(SEED), iter(range(NUM_CALLS))
    phases: Counter[str] = Counter()
    async with real() as served, AsyncClient(served.grpc) as client:
        ask: Ask = by_grpc if protocol == "grpc" else by_http
        address = served.grpc if protocol == "grpc" else served.http

        async def work() -> None:
            for _ in calls:
                one = drawn(draw)
                phases[await leave(ask(address, one), one)] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
        print(NUM_CALLS, "disconnects by", protocol, dict(phases))
        assert min(phases[phase] for phase in PHASES) > NUM_CALLS // 10
        await served.held()
        for session in await client.sessions.list():
            await client.sessions.delete(session.name)
        await client.generate([1, 2, 3], max_new_tokens=1).result()  # The worker drops with the next step.
        assert await served.held() == (0, 0)
